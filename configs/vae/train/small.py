"""A small CausalVAEModel: 8x8 in space, 4x in time, 16 latent channels, 2.8 M parameters.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small.py dataset.data_path=shots.csv \
            validation_dataset.data_path=shots.csv
Expect: the PSNR on held-back frames that assets/vae-small/README.md states for the weights made with it.
"""

task = "autoencoder"
vae = dict(
    type="CausalVAEModel",
    hidden_size=16,
    hidden_size_mult=(1, 2, 4, 4),
    num_res_blocks=1,
    z_channels=16,
    embed_dim=16,
    norm_groups=8,
)
# the first 70 % of every shot is trained on; the PSNR is measured on the last 30 %
dataset = dict(
    type="VideoTextDataset",
    data_path="outputs/demo/data/manifest.csv",
    num_frames=9,
    image_size=(64, 96),
    time_range=(0.0, 0.7),
    flip=True,
    captions=False,
    cache_megabytes=256,
)
validation_dataset = dict(
    type="VideoTextDataset",
    data_path="outputs/demo/data/manifest.csv",
    num_frames=5,
    image_size=(64, 96),
    time_range=(0.7, 1.0),
    start="center",
    captions=False,
    cache_megabytes=256,
)
optimizer = dict(type="AdamW", lr=1e-3)
lr_scheduler = dict(type="cosine", end_factor=0.05)
warmup_steps = 50
grad_clip = 1.0
ema_decay = None
reconstruction_loss = "l1"
kl_weight = 1e-6
plugin, dtype = "zero2", "auto"
batch_size, micro_batches = 2, 2
steps, save_every, log_every, validate_every = 2000, 200, 10, 200
validation_batches = 8
keep_last = 2
run_dir = "outputs/vae-small"
