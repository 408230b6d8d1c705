"""The debug run with few clips: with many, a test spends half of its time on encoding new captions."""

_base_ = ["../../configs/stdit/train/debug.py"]
dataset = dict(clips=12)
