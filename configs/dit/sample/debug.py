"""Sample from what configs/dit/train/debug.py trained: noise, but a whole sampling run in seconds.

Run:    opensora sample configs/dit/sample/debug.py --prompt "a red circle moves left"
Expect: one mp4 of 5 frames of 16x16 with its json in outputs/dit-debug/samples; a prompt that is no caption of
        MovingShapes is refused.
"""

load = "outputs/dit-debug"
dtype = "fp32"
save_dir = "outputs/dit-debug/samples"
