"""DiT-XL/2 by class on images of 256x256 in 1,000 classes; captions in the manifest are class numbers or names.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/dit/train/1x256x256-class.py \
            dataset.data_path=images.csv text_encoder.names=classes.txt text_encoder.num_classes=None
        or without the last two, when captions are numbers
Expect: not run here (needs accelerators); batch 32 on each of 8 devices.
"""

_base_ = ["./1x256x256.py"]
text_encoder = dict(_delete_=True, type="classes", num_classes=1000)
model = dict(condition="label_1000")
run_dir = "outputs/dit-1x256x256-class"
