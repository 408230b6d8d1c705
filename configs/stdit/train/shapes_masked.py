"""configs/stdit/train/shapes.py with conditioning frames: the same STDiT also continues a picture, leads up to one, or both.

Run:    opensora train --ranks 2 configs/vae/train/shapes.py
        opensora train --ranks 2 configs/stdit/train/shapes_masked.py vae.from_pretrained=outputs/shapes-vae
Cost:   as configs/stdit/train/shapes.py
Expect: the rows "conditioning frames" that `opensora bench sample` prints, which docs/numbers.md shows
"""

_base_ = ["./shapes.py"]
mask_ratios = dict(image_head=0.3, image_tail=0.1, image_head_tail=0.1, random=0.1)
run_dir = "outputs/shapes-masked"
