"""Open-Sora 1.2, stage 1: STDiT3-XL/2 on pictures and on clips of 51 to 408 frames in many sizes at once.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/stdit3/train/buckets.py \
            dataset.data_path=clips.parquet load=pixart-stdit3
        load: PixArt-Sigma as `python -m tools.weights.convert ... --from pixart-sigma --to STDiT3-XL/2` writes it.
        clips.parquet: with the columns num_frames, height and width, as `python -m tools.datasets.probe` writes them.
Expect: not run here (needs accelerators and T5-XXL). The buckets are the recipe's; a step is one micro-batch on each of
        eight devices.
"""

_base_ = [
    "../../_base_/open_sora_1_2.py",
    "../../_base_/open_sora_1_2_vae.py",
    "../../_base_/open_sora_1_2_buckets.py",
]
dataset = dict(type="VideoTextDataset", data_path="clips.parquet")
micro_batches = 8
warmup_buckets = True
steps = 30_000
run_dir = "outputs/stdit3-buckets"
