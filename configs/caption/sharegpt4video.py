"""Dense captions of longer clips as ShareGPT4Video makes them: what changes from window to window, then one text of all.

Each window of 2 seconds begins with the last frame of the one before; the model says what is new since its last answer, and
merges all answers in the end.

Run: python -m tools.caption.caption clips.csv captions.csv --captioner configs/caption/sharegpt4video.py
"""

captioner = dict(
    type="transformers",
    from_pretrained="Qwen/Qwen2.5-VL-7B-Instruct",
    max_new_tokens=400,
    batch_size=4,
    prompting=dict(
        layout="images",
        frames=2,  # and the last one of the window before
        max_side=448,
        window_seconds=2.0,
        most_windows=16,
        overlap=True,
        merge="model",
        prompt=(
            "These pictures are the first moments of a video, in order. Describe them in detail: the subjects, their looks, places "
            "and actions, the background, the light, the style, and the movement of the camera. Describe only what can be seen."
        ),
        difference_prompt=(
            "The first of these pictures is the last one that you saw of a video, the others follow it. You said of the moments "
            'before: "{previous}" Say what changes from picture to picture: actions, positions, subjects that come or go, '
            "background, light, and the movement of the camera. Say nothing of what stays the same; where nothing changes, say so in "
            "one sentence."
        ),
    ),
)
