"""The tiny CausalVAEModel against a tiny 3-D discriminator on drawn clips: seconds on a laptop CPU.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/debug_adversarial.py
Expect: from step 3 on, metrics.jsonl holds gan_weight, discriminator and the logits under `figures`.
"""

_base_ = ["debug.py"]
discriminator = dict(type="PatchDiscriminator3D", width=8)
disc_start, disc_weight = 2, 0.5
disc_optimizer = dict(type="AdamW", lr=1e-3, betas=(0.5, 0.9))
run_dir = "outputs/debug-adversarial"
