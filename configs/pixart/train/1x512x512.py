"""PixArt-XL/2 on images of 512x512 (image files or single frames of videos).

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/pixart/train/1x512x512.py \
            dataset.data_path=images.csv load=pixart-512
        load: a folder that `python -m tools.weights.convert ... --from pixart-alpha --to PixArt-XL/2` wrote; without
        it training starts anew.
Expect: not run here (needs accelerators and T5-XXL); batch 32 on each of 8 devices.
"""

_base_ = ["./1x256x256.py"]
dataset = dict(image_size=(512, 512))
run_dir = "outputs/pixart-1x512x512"
