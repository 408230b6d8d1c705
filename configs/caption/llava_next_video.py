"""Captions by LLaVA-NeXT-Video.

Run: python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/llava_next_video.py
"""

captioner = dict(
    type="transformers",
    from_pretrained="llava-hf/LLaVA-NeXT-Video-7B-hf",
    max_new_tokens=256,
    batch_size=4,
    prompting=dict(layout="video", frames=16, max_side=336),
)
