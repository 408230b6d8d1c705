"""The debug run with few clips and a text encoder of two layers: otherwise a test spends half of its time on captions."""

from tests.support.text_models import shared_bert

_base_ = ["../../configs/stdit/train/debug.py"]
text_encoder = dict(_delete_=True, type="hf", from_pretrained=shared_bert(), model_max_length=24)
dataset = dict(clips=12)
