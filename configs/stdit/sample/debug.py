"""Sample from what configs/stdit/train/debug.py trained: noise, but a whole sampling run in seconds.

Run:    opensora sample configs/stdit/sample/debug.py --prompt "a red circle moves left"
Expect: one mp4 of 5 frames of 16x16 with its json in outputs/debug/samples.
"""

load = "outputs/debug"
dtype = "fp32"
save_dir = "outputs/debug/samples"
