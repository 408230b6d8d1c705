"""Open-Sora 1.1, stage 1: STDiT2-XL/2 on pictures and on clips of 16 to 96 frames in many sizes at once.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit2/train/buckets.py \
            dataset.data_path=clips.parquet load=pixart-stdit2
        load: PixArt-alpha as `python -m tools.weights.convert ... --from pixart-alpha --to STDiT2-XL/2` writes it.
        clips.parquet: with the columns num_frames, height and width, as `python -m tools.datasets.probe` writes them.
Expect: not run here (needs accelerators and T5-XXL). The buckets are the recipe's; a step is one micro-batch on each of
        eight devices, with steps of our own.
"""

_base_ = ["../../_base_/open_sora_1_1.py", "../../_base_/open_sora_1_1_buckets.py"]
dataset = dict(type="VideoTextDataset", data_path="clips.parquet", frame_interval=3)
micro_batches = 8
warmup_buckets = True
steps = 100_000
run_dir = "outputs/stdit2-buckets"
