"""Continue a picture with the words of a combination that configs/stdit/train/shapes_masked.py never saw.

Run:    opensora sample configs/stdit/sample/shapes_masked.py --first-frame PICTURE --prompt "a red circle moves left"
Expect: the first frame is PICTURE as the autoencoder shows it
"""

load = "outputs/shapes-masked"
save_dir = "outputs/shapes-masked/videos"
