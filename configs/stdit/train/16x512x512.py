"""Open-Sora 1.0, stage 2: STDiT-XL/2 on 16 frames of 512x512, from the weights of stage 1.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit/train/16x512x512.py \
            dataset.data_path=clips.csv load=stdit-512
        load: stage 1 as `python -m tools.weights.convert ... --from stdit input_size=[16,64,64] space_scale=1.0` writes it,
        with position tables of this size; without it training starts anew.
Expect: not run here (needs accelerators and T5-XXL).
"""

_base_ = ["../../_base_/open_sora_1_0.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=16, frame_interval=3, image_size=(512, 512))
model = dict(type="STDiT-XL/2", space_scale=1.0, time_scale=1.0)
batch_size, micro_batches = 8, 8  # clips in a micro-batch, micro-batches in a step: 64 clips
steps = 100_000
run_dir = "outputs/stdit-16x512x512"
