"""Sample from what configs/pixart/train/debug.py trained: noise, but a whole sampling run in seconds.

Run:    opensora sample configs/pixart/sample/debug.py --prompt "a red circle moves left"
Expect: one png of 16x16 with its json in outputs/pixart-debug/samples.
"""

load = "outputs/pixart-debug"
dtype = "fp32"
save_dir = "outputs/pixart-debug/samples"
