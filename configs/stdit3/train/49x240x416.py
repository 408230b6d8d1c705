"""Open-Sora 1.3: STDiT3 with windows on 49 frames of 240x416, from text alone.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit3/train/49x240x416.py \
            dataset.data_path=clips.csv load=pixart-stdit3
        load: PixArt-Sigma as `python -m tools.weights.convert ... --from pixart-sigma --to STDiT3-XL/2-v1.3` writes it.
Expect: not run here (needs accelerators and T5-XXL). The recipe trains on buckets of many sizes and lengths at once and
        gives frames as a condition in some clips; this is one bucket, without given frames, with batch size and steps
        of our own.
"""

_base_ = ["../../_base_/open_sora_1_3.py", "../../_base_/open_sora_1_3_vae.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=49, image_size=(240, 416))
batch_size, micro_batches = 4, 8  # clips in a micro-batch, micro-batches in a step: 32 clips
steps = 30_000
run_dir = "outputs/stdit3-49x240x416"
