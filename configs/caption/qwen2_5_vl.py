"""Captions by Qwen2.5-VL, which reads the frames as a video with its times.

Run: python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/qwen2_5_vl.py
     --options from_pretrained=/weights/Qwen2.5-VL-7B-Instruct names another folder or size
"""

captioner = dict(
    type="transformers",
    from_pretrained="Qwen/Qwen2.5-VL-7B-Instruct",
    max_new_tokens=300,
    batch_size=4,
    prompting=dict(
        layout="video",
        frames=16,
        max_side=448,
        system="You are a helpful assistant.",
    ),
)
