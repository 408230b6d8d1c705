"""A tiny CausalVAEModel on drawn clips: a whole autoencoder training in seconds on a laptop CPU.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/debug.py
Expect: a falling L1 loss and a PSNR near 10 dB after a few steps.
"""

_base_ = ["../../_base_/tiny_vae.py"]
task = "autoencoder"
dataset = dict(type="MovingShapes", clips=64, num_frames=5, image_size=(16, 16))
validation_dataset = dict(type="MovingShapes", clips=16, num_frames=5, image_size=(16, 16), split="holdout")
optimizer = dict(type="AdamW", lr=1e-3)
ema_decay = None
plugin, dtype = "zero2", "fp32"
batch_size, micro_batches, validation_batches = 2, 2, 2
steps, save_every, log_every, keep_last = 6, 2, 1, 2
run_dir = "outputs/debug-vae"
