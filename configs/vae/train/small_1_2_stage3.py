"""Stage 3 of open_sora_1_2_stage3.py at a small size: pixels, of images and of clips of up to 34 frames, by both parts.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small_1_2_stage3.py
Expect: tried with steps=80 after that: 20.0 dB PSNR.
"""

_base_ = ["../../_base_/small_1_2_vae.py"]
load = "outputs/small-1-2-stage2"
vae = dict(freeze_spatial=False)
dataset = dict(num_frames=34)
min_frames = 2
batch_size = 1
steps = 500
run_dir = "outputs/small-1-2-stage3"
