"""PixArtMS, told size and aspect ratio, on drawn images: a whole training run in seconds on a laptop CPU.

Run:    opensora train configs/pixart/train/debug_ms.py
Expect: six steps with losses near 1, as configs/pixart/train/debug.py.
"""

_base_ = ["./debug.py"]
model = dict(type="PixArtMS")
dataset = dict(image_size=(16, 24))
run_dir = "outputs/pixart-debug-ms"
