"""Stage 2 of open_sora_1_2_stage2.py at a small size: image latents are reconstructed, without the identity loss.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small_1_2_stage2.py
Expect: tried with steps=100 after that: 20.1 dB PSNR.
"""

_base_ = ["../../_base_/small_1_2_vae.py"]
load = "outputs/small-1-2-stage1"
reconstruct = "latents"
steps = 1000
run_dir = "outputs/small-1-2-stage2"
