"""Open-Sora 1.0, stage 2: STDiT-XL/2 on 16 frames of 512x512, from the weights of stage 1.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit/train/16x512x512.py dataset.data_path=clips.csv
Expect: not run here (needs accelerators and T5-XXL). Position tables are computed for the new size, so `load` takes
        the weights of another size only through a conversion; this config starts from its own initial weights.
"""

_base_ = ["../../_base_/open_sora_1_0.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=16, frame_interval=3, image_size=(512, 512))
model = dict(type="STDiT-XL/2", space_scale=1.0, time_scale=1.0)
batch_size, micro_batches = 8, 8  # clips in a micro-batch, micro-batches in a step: 64 clips
steps = 100_000
run_dir = "outputs/stdit-16x512x512"
