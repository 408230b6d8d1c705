"""Open-Sora 1.0, stage 1: STDiT-XL/2 on 16 frames of 256x256, every third frame of the video.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit/train/16x256x256.py \
            dataset.data_path=clips.csv load=pixart-stdit
        load: PixArt-alpha as docs/weights.md converts it (input_size=[16,32,32] space_scale=0.5); without it training
        starts anew.
Cost:   `opensora check` with the same arguments and world=8 prints parameters, tokens and memory per device.
Expect: not run here (needs accelerators and T5-XXL); the recipe is Open-Sora 1.0's, batch 8 on each of 8 devices.
"""

_base_ = ["../../_base_/open_sora_1_0.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=16, frame_interval=3, image_size=(256, 256))
model = dict(type="STDiT-XL/2", space_scale=0.5, time_scale=1.0)
batch_size, micro_batches = 8, 8  # clips in a micro-batch, micro-batches in a step: 64 clips
steps = 100_000
run_dir = "outputs/stdit-16x256x256"
