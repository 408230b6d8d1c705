"""Images of 256x256 from DiT's released weights by ImageNet class: 100 steps, guidance 4. A prompt is a class number.

Run:    python -m tools.weights.convert DiT-XL-2-256x256.pt outputs/dit-imagenet --from dit
        opensora sample configs/dit/sample/1x256x256-class.py --prompt 207
Expect: not run here (needs an accelerator and the released weights).
"""

load = "outputs/dit-imagenet"
text_encoder = dict(type="classes", num_classes=1000)
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=4.0)
num_frames, image_size, fps = 1, (256, 256), 1
save_dir = "outputs/dit-imagenet/samples"
