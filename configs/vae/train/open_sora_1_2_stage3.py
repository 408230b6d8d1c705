"""Stage 3 of Open-Sora 1.2's autoencoder: both parts learn to reconstruct pixels, of images and of clips of up to 34 frames.

Run:    torchrun --nnodes 3 --nproc_per_node 8 -m opensora.cli.train configs/vae/train/open_sora_1_2_stage3.py \
            dataset.data_path=clips.csv validation_dataset.data_path=held-back.csv perceptual.weights="['vgg16.pth','vgg_lpips.pth']"
        docs/training.md says where the weights of perceptual and validation_perceptual come from.
Expect: not run here (needs accelerators).
"""

_base_ = ["../../_base_/open_sora_1_2_vae_stages.py"]
load = "outputs/open-sora-1-2-stage2"
vae = dict(freeze_spatial=False)
dataset = dict(num_frames=34)
min_frames = 2  # a length from 2 to 34 for every step that takes clips
perceptual = dict(type="LPIPS", weights=["vgg16.pth", "vgg_lpips.pth"])
perceptual_weight = 0.1
grad_checkpoint = True  # without it 34 frames take more than 80 GB
micro_batches = 24  # one clip on each of 24 devices
steps = 540000
run_dir = "outputs/open-sora-1-2-stage3"
