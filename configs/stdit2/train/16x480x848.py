"""Open-Sora 1.1, stage 3: STDiT2-XL/2 on 16 frames of 480x848, every third frame of the video.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit2/train/16x480x848.py \
            dataset.data_path=clips.csv load=outputs/stdit2-64x240x424
        load: stage 2.
Expect: not run here (needs accelerators and T5-XXL). The recipe trains on buckets of many sizes and lengths at once;
        this is one of them, with batch size and steps of our own.
"""

_base_ = ["../../_base_/open_sora_1_1.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=16, frame_interval=3, image_size=(480, 848))
batch_size, micro_batches = 1, 8  # clips in a micro-batch, micro-batches in a step: 8 clips
steps = 50_000
run_dir = "outputs/stdit2-16x480x848"
