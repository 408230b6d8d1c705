"""Stage 2 of causal_stage2.py at a small size: it goes on from small_stage1.py with 25 frames.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small_stage2.py
Expect: tried with steps=50 after that: 21.3 dB PSNR.
"""

_base_ = ["../../_base_/small_causal_vae.py"]
load = "outputs/small-stage1"
dataset = dict(num_frames=25)
kl_weight = 25e-6
optimizer = dict(type="AdamW", lr=2e-4)
lr_groups = dict(time=4e-4)
batch_size = 1
steps = 500
run_dir = "outputs/small-stage2"
