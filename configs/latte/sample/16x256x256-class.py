"""Videos of 16 frames of 256x256 from Latte's weights for UCF-101: 100 steps, guidance 7. A prompt is a class number.

Run:    python -m tools.weights.convert ucf101.pt outputs/latte-ucf101 --from latte
        opensora sample configs/latte/sample/16x256x256-class.py --prompt 0
Expect: not run here (needs an accelerator and the released weights).
"""

load = "outputs/latte-ucf101"
text_encoder = dict(type="classes", num_classes=101)
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0)
num_frames, image_size, fps = 16, (256, 256), 8
save_dir = "outputs/latte-ucf101/samples"
