"""Open-Sora 1.0: STDiT-XL/2 on 64 frames of 512x512.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit/train/64x512x512.py \
            dataset.data_path=clips.csv load=stdit-64x512
        load: stage 2 as `python -m tools.weights.convert ... --from stdit input_size=[64,64,64] time_scale=0.6666666666666666`
        writes it, with position tables of this size; without it training starts anew.
Expect: not run here (needs accelerators and T5-XXL).
"""

_base_ = ["../../_base_/open_sora_1_0.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=64, frame_interval=3, image_size=(512, 512))
model = dict(type="STDiT-XL/2", space_scale=1.0, time_scale=2 / 3)
batch_size, micro_batches = 4, 8  # clips in a micro-batch, micro-batches in a step: 32 clips
steps = 100_000
run_dir = "outputs/stdit-64x512x512"
