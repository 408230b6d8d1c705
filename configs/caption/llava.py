"""Captions by LLaVA 1.6, which was trained on single pictures: it sees the frames side by side in one.

Run: python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/llava.py
"""

captioner = dict(
    type="transformers",
    from_pretrained="llava-hf/llava-v1.6-mistral-7b-hf",
    max_new_tokens=256,
    batch_size=4,
    prompting=dict(
        layout="grid",
        frames=4,
        max_side=336,  # of each frame; the model cuts the picture into tiles of 336 pixels
        prompt=(
            "The picture shows moments of one video in order, row by row from left to right. Describe the video in one "
            "paragraph of plain English: the subjects, what they look like and what they do from the first moment to the last, "
            "the place, the light and the movement of the camera. Do not mention the picture, its parts or their number."
        ),
    ),
)
