# What the small stages share: they train on the demo's shots, on two CPU cores.
task = "autoencoder"
# the first 70 % of every shot is trained on; validation is on the last 30 %
dataset = dict(
    type="VideoTextDataset",
    data_path="outputs/demo/data/manifest.csv",
    image_size=(64, 96),
    time_range=(0.0, 0.7),
    flip=True,
    captions=False,
    cache_megabytes=256,
)
validation_dataset = dict(
    type="VideoTextDataset",
    data_path="outputs/demo/data/manifest.csv",
    num_frames=9,
    image_size=(64, 96),
    time_range=(0.7, 1.0),
    start="center",
    captions=False,
    cache_megabytes=256,
)
optimizer = dict(type="AdamW", lr=5e-4)
lr_scheduler = dict(type="cosine", end_factor=0.05)
warmup_steps = 20
ema_decay = 0.99
reconstruction_loss = "l1"
plugin, dtype = "zero2", "auto"
batch_size, micro_batches, validation_batches = 2, 2, 4
save_every, log_every, validate_every, keep_last = 200, 10, 200, 1
