"""Stage 1 of Open-Sora-Plan 1.1's autoencoder: 9 frames of 256x256, from Stable Diffusion's image autoencoder.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/vae/train/causal_stage1.py dataset.data_path=clips.csv \
            validation_dataset.data_path=held-back.csv perceptual.weights="['vgg16.pth','vgg_lpips.pth']"
        docs/training.md says where the weights of perceptual and validation_perceptual come from.
Expect: not run here (needs accelerators). Published for this stage: PSNR 28.0, SSIM 0.850.
"""

_base_ = ["../../_base_/causal_vae_stages.py"]
tail_init = "stabilityai/sd-vae-ft-ema"  # a hub id; or a folder or file on the disk, docs/weights.md
dataset = dict(num_frames=9)
validation_dataset = dict(num_frames=9)
kl_weight = 9e-6  # 1e-6 next to one frame
steps = 50000
run_dir = "outputs/causal-stage1"
