# What the three stages of Open-Sora-Plan 1.1's CausalVAEModel share, at its released layout. Batch, optimizer and losses
# are the published ones. Its trainer counts its steps twice per batch where it has two optimizers; counts here are batches.
task = "autoencoder"
vae = dict(type="CausalVAEModel")
dataset = dict(type="VideoTextDataset", data_path="clips.csv", image_size=(256, 256), captions=False)
validation_dataset = dict(
    type="VideoTextDataset",
    data_path="held-back.csv",
    image_size=(256, 256),
    start="center",
    captions=False,
)
validation_perceptual = dict(type="STLPIPS")
optimizer = dict(type="AdamW", lr=1e-5, betas=(0.5, 0.9))
lr_groups = dict(time=1e-5)  # the layers that halve and double the frames: a group of their own, here at the same rate
grad_clip = 1.0
ema_decay = None
reconstruction_loss = "l1"
perceptual = dict(type="LPIPS", weights=["vgg16.pth", "vgg_lpips.pth"])
perceptual_weight = 1.0
plugin, dtype = "ddp", "auto"
batch_size, micro_batches = 1, 8  # one clip on each of eight devices
num_workers = 8
seed = 1006
save_every, validate_every, keep_last = 1000, 1000, 3
