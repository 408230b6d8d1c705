"""PixArt-XL/2 on images of 256x256 (image files or single frames of videos).

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/pixart/train/1x256x256.py \
            dataset.data_path=images.csv load=pixart-256
        load: a folder that `python -m tools.weights.convert ... --from pixart-alpha --to PixArt-XL/2` wrote; without
        it training starts anew.
Expect: not run here (needs accelerators and T5-XXL); batch 32 on each of 8 devices.
"""

_base_ = ["../../_base_/open_sora_1_0.py"]
dataset = dict(type="VideoTextDataset", data_path="images.csv", num_frames=1, image_size=(256, 256))
model = dict(type="PixArt-XL/2", space_scale=1.0, time_scale=1.0, no_temporal_pos_emb=True)
batch_size, micro_batches = 32, 8  # images in a micro-batch, micro-batches in a step: 256 images
steps = 100_000
run_dir = "outputs/pixart-1x256x256"
