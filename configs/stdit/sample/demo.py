"""Sample the demo's model: one mp4 per prompt of the demo's manifest.

Run:    opensora sample configs/stdit/sample/demo.py --prompt "A big grey cartoon rabbit stretches its arms and yawns."
Expect: clips of 9 frames of 64x96 in outputs/demo/videos; the model knows eight shots and nothing else.
"""

load = "outputs/demo/diffusion"
seed = 7
save_dir = "outputs/demo/videos"
