"""PixArt-XL/2 on 16 frames of 256x256 with attention over all tokens of a clip, 4,096, as Open-Sora 1.0 compared it.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/pixart/train/16x256x256.py \
            dataset.data_path=clips.csv load=pixart-16x256
        load: `python -m tools.weights.convert PixArt-XL-2-512x512.pth pixart-16x256 --from pixart-alpha --to PixArt-XL/2 \
            input_size=[16,32,32] space_scale=0.5` writes it; without it training starts anew.
Expect: not run here (needs accelerators and T5-XXL); batch 8 on each of 8 devices.
"""

_base_ = ["../../_base_/open_sora_1_0.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=16, frame_interval=3, image_size=(256, 256))
model = dict(type="PixArt-XL/2", space_scale=0.5, time_scale=1.0)
batch_size, micro_batches = 8, 8  # clips in a micro-batch, micro-batches in a step: 64 clips
steps = 100_000
run_dir = "outputs/pixart-16x256x256"
