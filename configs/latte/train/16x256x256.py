"""Latte-XL/2 by text on 16 frames of 256x256, attention within frames and along time by turns, as Open-Sora 1.0 compared it.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/latte/train/16x256x256.py dataset.data_path=clips.csv
Expect: not run here (needs accelerators and CLIP's weights); batch 8 on each of 8 devices. The caption is one vector.
"""

_base_ = ["../../_base_/open_sora_1_0.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=16, frame_interval=3, image_size=(256, 256))
text_encoder = dict(_delete_=True, type="clip", from_pretrained="openai/clip-vit-base-patch32", max_tokens=77)
model = dict(type="Latte-XL/2", condition="text")
batch_size, micro_batches = 8, 8  # clips in a micro-batch, micro-batches in a step: 64 clips
steps = 100_000
run_dir = "outputs/latte-16x256x256"
