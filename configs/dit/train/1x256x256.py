"""DiT-XL/2 by text on images of 256x256 (image files or single frames of videos).

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/dit/train/1x256x256.py dataset.data_path=images.csv
Expect: not run here (needs accelerators and CLIP's weights); batch 32 on each of 8 devices.
"""

_base_ = ["./16x256x256.py"]
dataset = dict(data_path="images.csv", num_frames=1, frame_interval=1)
model = dict(no_temporal_pos_emb=True)
batch_size, micro_batches = 32, 8  # images in a micro-batch, micro-batches in a step: 256 images
run_dir = "outputs/dit-1x256x256"
