"""Stage 3 of Open-Sora-Plan 1.1's autoencoder: mixing factors reset to 0.5, then a 3-D discriminator.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/vae/train/causal_stage3.py dataset.data_path=clips.csv \
            validation_dataset.data_path=held-back.csv perceptual.weights="['vgg16.pth','vgg_lpips.pth']"
Expect: not run here (needs accelerators). Published: PSNR 29.1 and SSIM 0.873 after the reset, 29.9 and 0.882 with the
        discriminator. Its 80,000 steps, and 2,001 before the discriminator, are 40,000 and 1,001 here.
"""

_base_ = ["causal_stage2.py"]
load = "outputs/causal-stage2"
reset_mix_factor = 0.5  # the fixed branch then has a share of sigmoid(0.5) = 0.62, where it began with 0.88
discriminator = dict(type="PatchDiscriminator3D")
disc_optimizer = dict(type="AdamW", lr=1e-5, betas=(0.5, 0.9))
disc_loss, disc_start, disc_weight = "hinge", 1001, 0.5
steps = 40000
run_dir = "outputs/causal-stage3"
