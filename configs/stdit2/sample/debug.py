"""Sample from what configs/stdit2/train/debug.py trained: noise, but a whole sampling run in seconds.

Run:    opensora sample configs/stdit2/sample/debug.py --prompt "a red circle moves left"
Expect: one mp4 of 5 frames of 16x16 with its json in outputs/stdit2-debug/samples.
"""

load = "outputs/stdit2-debug"
dtype = "fp32"
save_dir = "outputs/stdit2-debug/samples"
