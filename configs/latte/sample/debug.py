"""Sample from what configs/latte/train/debug.py trained: noise, but a whole sampling run in seconds.

Run:    opensora sample configs/latte/sample/debug.py --prompt "a red circle moves left"
Expect: one mp4 of 5 frames of 16x16 with its json in outputs/latte-debug/samples; a prompt that is no caption of
        MovingShapes is refused.
"""

load = "outputs/latte-debug"
dtype = "fp32"
save_dir = "outputs/latte-debug/samples"
