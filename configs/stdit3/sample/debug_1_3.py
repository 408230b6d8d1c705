"""Sample from what configs/stdit3/train/debug_1_3.py trained: noise, but a whole sampling run in seconds.

Run:    opensora sample configs/stdit3/sample/debug_1_3.py --prompt "a red circle moves left"
Expect: one mp4 of 5 frames of 16x16 with its json in outputs/stdit3-debug-1-3/samples.
"""

load = "outputs/stdit3-debug-1-3"
dtype = "fp32"
save_dir = "outputs/stdit3-debug-1-3/samples"
