"""Latte on drawn clips by class, every caption a class: a whole training run in seconds on a laptop CPU.

Run:    opensora train configs/latte/train/debug.py
Expect: six steps with losses near 1, the variance of the noise: the latents of the untrained autoencoder are small.
"""

_base_ = ["../../_base_/tiny_vae.py", "../../_base_/moving_shapes_classes.py"]
model = dict(type="Latte", hidden_size=48, depth=2, num_heads=2, patch_size=(1, 2, 2))
scheduler = dict(type="iddpm", num_sampling_steps=4, cfg_scale=2.0)
dataset = dict(type="MovingShapes", clips=64, num_frames=5, image_size=(16, 16))
optimizer = dict(type="AdamW", lr=1e-3)
warmup_steps = 2
ema_decay = 0.9
plugin, dtype = "zero2", "fp32"
batch_size, micro_batches = 2, 2
steps, save_every, log_every, keep_last = 6, 2, 1, 2
run_dir = "outputs/latte-debug"
