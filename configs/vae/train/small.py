"""The CausalVAEModel of assets/vae-small: 8x8 in space, 4x in time, 16 latent channels, 4.0 M parameters.

Run:    see assets/vae-small/README.md, which makes the two manifests first; then
        torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small.py
Expect: the PSNR on held-back frames that assets/vae-small/README.md states for the weights made with it.
"""

task = "autoencoder"
# Shuffles in place of strides, and no norms before the last convolutions, so that training can begin with principal
# components: 29 dB before the first step, where random weights are at 17 dB after 150.
vae = dict(
    type="CausalVAEModel",
    hidden_size=16,
    hidden_size_mult=(1, 2, 4, 5),
    num_res_blocks=1,
    z_channels=16,
    embed_dim=16,
    norm_groups=1,
    norm_out=False,
    encoder_spatial_downsample=("SpatialUnshuffle2x", "SpatialUnshuffle2x", "SpatialUnshuffle2x", ""),
    encoder_temporal_downsample=("", "TimeUnshuffle2x", "TimeUnshuffle2x", ""),
    decoder_spatial_upsample=("", "SpatialShuffle2x", "SpatialShuffle2x", "SpatialShuffle2x"),
    decoder_temporal_upsample=("", "", "TimeShuffle2x", "TimeShuffle2x"),
)
principal_start = True
# Clips of tools/demo/varied_footage.py: pans over pictures, words, and the first 70 % of real shots. The PSNR is measured
# on the last 30 % of those shots.
dataset = dict(
    type="VideoTextDataset",
    data_path="outputs/varied/manifest.csv",
    num_frames=9,
    image_size=(64, 96),
    flip=True,
    captions=False,
    cache_megabytes=1024,
)
validation_dataset = dict(
    type="VideoTextDataset",
    data_path="outputs/varied/live.csv",
    num_frames=5,
    image_size=(64, 96),
    time_range=(0.7, 1.0),
    start="center",
    captions=False,
    cache_megabytes=256,
)
optimizer = dict(type="AdamW", lr=1e-4, betas=(0.9, 0.99))
lr_scheduler = dict(type="cosine", end_factor=0.01)
warmup_steps = 100
grad_clip = 1.0
ema_decay = 0.998
reconstruction_loss = "l1"
kl_weight = 1e-6
plugin, dtype = "zero2", "auto"
batch_size, micro_batches = 2, 2
steps, save_every, log_every, validate_every = 1900, 200, 20, 100
validation_batches = 8
keep_last = 2
run_dir = "outputs/vae-small"
