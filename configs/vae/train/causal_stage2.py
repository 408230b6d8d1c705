"""Stage 2 of Open-Sora-Plan 1.1's autoencoder: it goes on from stage 1 with 25 frames of 256x256.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/vae/train/causal_stage2.py dataset.data_path=clips.csv \
            validation_dataset.data_path=held-back.csv perceptual.weights="['vgg16.pth','vgg_lpips.pth']"
Expect: not run here (needs accelerators). Published for this stage: PSNR 28.8, SSIM 0.868; its number of steps was not.
"""

_base_ = ["../../_base_/causal_vae_stages.py"]
load = "outputs/causal-stage1"
dataset = dict(num_frames=25)
validation_dataset = dict(num_frames=25)
kl_weight = 25e-6  # 1e-6 next to one frame
steps = 50000
run_dir = "outputs/causal-stage2"
