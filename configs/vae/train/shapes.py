"""The small autoencoder of assets/vae-small, tuned on MovingShapes: 9 frames of 32x32 become 3x4x4 latents.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/shapes.py
Expect: see configs/stdit/train/shapes.py, which trains on these latents.
"""

task = "autoencoder"
vae = dict(type="CausalVAEModel", from_pretrained="assets/vae-small")
dataset = dict(type="MovingShapes", clips=4096, num_frames=9, image_size=(32, 32))
validation_dataset = dict(type="MovingShapes", clips=64, num_frames=9, image_size=(32, 32), split="holdout")
optimizer = dict(type="AdamW", lr=1e-4)
lr_scheduler = dict(type="cosine", end_factor=0.05)
warmup_steps = 20
ema_decay = None
reconstruction_loss = "l2"
plugin, dtype = "zero2", "auto"
batch_size, micro_batches = 4, 2
steps, save_every, log_every, validate_every = 500, 250, 25, 0
validation_batches = 16
keep_last = 1
run_dir = "outputs/shapes-vae"
