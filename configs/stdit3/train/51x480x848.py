"""Open-Sora 1.2, stage 2: STDiT3-XL/2 on 51 frames of 480x848.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit3/train/51x480x848.py \
            dataset.data_path=clips.csv load=outputs/stdit3-51x240x424
        load: stage 1.
Expect: not run here (needs accelerators and T5-XXL). The recipe trains on buckets of many sizes and lengths at once;
        this is one of them, with a batch size of our own.
"""

_base_ = ["../../_base_/open_sora_1_2.py", "../../_base_/open_sora_1_2_vae.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=51, image_size=(480, 848))
batch_size, micro_batches = 2, 8  # clips in a micro-batch, micro-batches in a step: 16 clips
steps = 23_000
run_dir = "outputs/stdit3-51x480x848"
