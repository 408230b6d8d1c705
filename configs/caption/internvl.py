"""Captions by InternVL3, which reads several pictures.

Run: python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/internvl.py
"""

captioner = dict(
    type="transformers",
    from_pretrained="OpenGVLab/InternVL3-8B-hf",
    max_new_tokens=300,
    batch_size=2,
    prompting=dict(
        layout="video",  # a numbered picture per frame, 448 x 448 pixels
        frames=12,
        max_side=448,
        prompt=(
            "Describe this video in one detailed paragraph: the subjects and what they do from beginning to end, their looks, the "
            "place, the light, the style and the movement of the camera. Describe only what can be seen, and speak of the scene "
            "itself, not of a video or of frames."
        ),
    ),
)
