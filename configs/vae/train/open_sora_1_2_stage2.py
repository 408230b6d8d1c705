"""Stage 2 of Open-Sora 1.2's autoencoder: as stage 1, without the identity loss.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/vae/train/open_sora_1_2_stage2.py \
            dataset.data_path=clips.csv validation_dataset.data_path=held-back.csv
Expect: not run here (needs accelerators).
"""

_base_ = ["../../_base_/open_sora_1_2_vae_stages.py"]
load = "outputs/open-sora-1-2-stage1"
reconstruct = "latents"
steps = 260000
run_dir = "outputs/open-sora-1-2-stage2"
