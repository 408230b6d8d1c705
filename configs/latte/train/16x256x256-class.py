"""Latte-XL/2 by class on 16 frames of 256x256 in 101 classes, as for UCF-101; captions are class numbers or names.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/latte/train/16x256x256-class.py dataset.data_path=clips.csv
Expect: not run here (needs accelerators); batch 8 on each of 8 devices.
"""

_base_ = ["./16x256x256.py"]
text_encoder = dict(_delete_=True, type="classes", num_classes=101)
model = dict(condition="label_101")
run_dir = "outputs/latte-16x256x256-class"
