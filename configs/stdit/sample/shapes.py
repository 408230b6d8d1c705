"""Sample the combinations that configs/stdit/train/shapes.py never saw, four videos of each.

Run:    python -m opensora.evaluation.score_adherence prompts outputs/shapes/prompts.txt
        opensora sample configs/stdit/sample/shapes.py
        python -m opensora.evaluation.score_adherence score outputs/shapes/videos
Expect: the accuracy stated in configs/stdit/train/shapes.py.
"""

load = "outputs/shapes"
prompt_path = "outputs/shapes/prompts.txt"
num_sample = 4
save_dir = "outputs/shapes/videos"
