"""Sample from what configs/pixart/train/debug_ms.py trained, at another size than it trained on.

Run:    opensora sample configs/pixart/sample/debug_ms.py --prompt "a red circle moves left"
Expect: one png of 24x16 with its json in outputs/pixart-debug-ms/samples.
"""

load = "outputs/pixart-debug-ms"
image_size = (24, 16)
dtype = "fp32"
save_dir = "outputs/pixart-debug-ms/samples"
