"""Sample the combinations that configs/stdit/train/shapes.py never saw, four videos of each.

Run:    opensora evaluate prompts outputs/shapes/prompts.txt
        opensora sample configs/stdit/sample/shapes.py
        opensora evaluate adherence outputs/shapes/videos
Expect: the accuracy stated in configs/stdit/train/shapes.py.
"""

load = "outputs/shapes"
prompt_path = "outputs/shapes/prompts.txt"
num_sample = 4
save_dir = "outputs/shapes/videos"
