"""Stage 1 of causal_stage1.py at a small size: 9 frames, from the image autoencoder of small_image.py.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small_stage1.py
        With ST-LPIPS in loss and validation: pip install --no-deps stlpips-pytorch==0.0.2, then add
            perceptual="dict(type='STLPIPS')" validation_perceptual="dict(type='STLPIPS')"
Expect: tried with steps=120 after 300 of small_image.py: 21.6 dB PSNR on 9 held-back frames.
"""

_base_ = ["../../_base_/small_causal_vae.py"]
tail_init = "outputs/small-image"
dataset = dict(num_frames=9)
kl_weight = 9e-6
steps = 1000
run_dir = "outputs/small-stage1"
