"""Stage 1 of open_sora_1_2_stage1.py at a small size: image latents are reconstructed, single frames held near theirs.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small_image.py, then
        torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small_1_2_stage1.py
Expect: tried with steps=150 after 300 of small_image.py: 19.2 dB PSNR on 17 held-back frames.
"""

_base_ = ["../../_base_/small_1_2_vae.py"]
reconstruct = "latents"
identity_weight = 1.0
optimizer = dict(type="AdamW", lr=1e-3)
steps = 1000
run_dir = "outputs/small-1-2-stage1"
