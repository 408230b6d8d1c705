"""Sample from what configs/stdit3/train/debug.py trained: noise, but a whole sampling run in seconds.

Run:    opensora sample configs/stdit3/sample/debug.py --prompt "a red circle moves left"
Expect: one mp4 of 5 frames of 16x16 with its json in outputs/stdit3-debug/samples.
"""

load = "outputs/stdit3-debug"
dtype = "fp32"
save_dir = "outputs/stdit3-debug/samples"
