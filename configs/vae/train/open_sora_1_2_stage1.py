"""Stage 1 of Open-Sora 1.2's autoencoder: the part in time learns to reconstruct the latents of the image autoencoder.

Single frames are also held near their image latents (the identity loss).
Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/vae/train/open_sora_1_2_stage1.py \
            dataset.data_path=clips.csv validation_dataset.data_path=held-back.csv
Expect: not run here (needs accelerators).
"""

_base_ = ["../../_base_/open_sora_1_2_vae_stages.py"]
vae = dict(spatial=dict(from_pretrained="PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers", subfolder="vae"))
reconstruct = "latents"
identity_weight = 1.0
steps = 380000
run_dir = "outputs/open-sora-1-2-stage1"
