"""Sample a video of each of the 160 pairs of object and motion that configs/stdit/train/objects.py never saw.

Run:    opensora evaluate object-prompts outputs/objects/prompts.txt
        opensora sample configs/stdit/sample/objects.py
        opensora evaluate configs/evaluate/objects.py
"""

load = "outputs/objects"
prompt_path = "outputs/objects/prompts.txt"
save_dir = "outputs/objects/videos"
