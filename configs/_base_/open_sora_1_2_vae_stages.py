# What the three stages of Open-Sora 1.2's autoencoder share, at its released layout. Steps, devices and the share of images
# are as we remember its report and were not checked against it; learning rate and weights of the losses are ours.
task = "autoencoder"
vae = dict(
    type="OpenSoraVAE_V1_2",
    spatial=dict(
        config=dict(  # the layout of Stable Diffusion XL's image autoencoder
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=32,
            latent_channels=4,
            sample_size=512,
        ),
    ),
    micro_frame_size=17,
    micro_batch_size=17,
    freeze_spatial=True,
)
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=17, image_size=(256, 256), captions=False)
validation_dataset = dict(
    type="VideoTextDataset",
    data_path="held-back.csv",
    num_frames=17,
    image_size=(256, 256),
    start="center",
    captions=False,
)
validation_perceptual = dict(type="STLPIPS")
image_ratio = 0.2  # of the steps; they take the first frames of their clips
optimizer = dict(type="AdamW", lr=1e-5)
grad_clip = 1.0
ema_decay = None
reconstruction_loss = "l1"
kl_weight = 1e-6
plugin, dtype = "ddp", "auto"
batch_size, micro_batches = 1, 8  # one clip on each of eight devices
num_workers = 8
save_every, validate_every, keep_last = 1000, 5000, 3
