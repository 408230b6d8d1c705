"""STDiT2 on drawn pictures and clips of several sizes at once: a whole training run in seconds on a laptop CPU.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/stdit2/train/debug_buckets.py
Expect: six steps with losses near 1, three of them of pictures; each step is of one size, so their tokens differ.
"""

_base_ = ["./debug.py"]
# Half of the clips that are large enough stay large, the others are shrunk; a third of the rows are pictures.
bucket_config = {
    "16x32": {1: (1.0, 2), 5: (0.5, 1)},
    "16x16": {1: (1.0, 4), 5: (1.0, 2)},
}
image_ratio = 0.5
warmup_buckets = True
dataset = dict(_delete_=True, type="MixedShapes", clips=96, sizes=((6, 16, 32), (6, 16, 16), (1, 16, 32), (1, 16, 16)))
run_dir = "outputs/stdit2-debug-buckets"
