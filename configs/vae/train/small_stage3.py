"""Stage 3 of causal_stage3.py at a small size: mixing factors reset to 0.5, then a 3-D discriminator.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small_stage3.py
Expect: tried with steps=50 disc_start=25 after that: 20.5 dB PSNR; so few steps do not make up for the reset.
"""

_base_ = ["small_stage2.py"]
load = "outputs/small-stage2"
reset_mix_factor = 0.5
discriminator = dict(type="PatchDiscriminator3D", width=16)
disc_optimizer = dict(type="AdamW", lr=2e-4, betas=(0.5, 0.9))
disc_loss, disc_start, disc_weight = "hinge", 100, 0.5
run_dir = "outputs/small-stage3"
