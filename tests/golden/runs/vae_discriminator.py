"""A tiny autoencoder against a discriminator: the run folder in the archive was written with this file."""

task = "autoencoder"
vae = dict(
    type="CausalVAEModel",
    hidden_size=2,
    hidden_size_mult=(1,),
    z_channels=2,
    embed_dim=2,
    num_res_blocks=1,
    norm_groups=1,
    encoder_resnet_blocks=("ResnetBlock3D",),
    decoder_resnet_blocks=("ResnetBlock3D",),
    encoder_spatial_downsample=("",),
    encoder_temporal_downsample=("",),
    decoder_spatial_upsample=("",),
    decoder_temporal_upsample=("",),
)
discriminator = dict(type="PatchDiscriminator3D", width=2)
disc_start, disc_weight = 2, 0.5
disc_optimizer = dict(type="AdamW", lr=1e-3, betas=(0.5, 0.9))
dataset = dict(type="MovingShapes", clips=16, num_frames=5, image_size=(8, 8))
optimizer = dict(type="AdamW", lr=1e-3)
ema_decay = 0.9
plugin, dtype = "zero2", "fp32"
batch_size, micro_batches = 2, 2
steps, save_every, keep_last = 8, 4, 2
run_dir = "run"
