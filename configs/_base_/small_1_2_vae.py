# OpenSoraVAE_V1_2 over the image autoencoder of small_image.py, 6.8 M parameters. The part in time works at the scale of
# latents that was measured there, so every stage names that run.
_base_ = ["small_vae_stages.py"]
vae = dict(
    type="OpenSoraVAE_V1_2",
    spatial=dict(
        from_pretrained="outputs/small-image",
        config=dict(
            block_out_channels=(16, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=8,
            latent_channels=16,
        ),
    ),
    temporal=dict(in_out_channels=16, latent_embed_dim=16, embed_dim=16, filters=32, num_res_blocks=1, num_groups=8),
    micro_frame_size=17,
    micro_batch_size=None,
    shift=0.0,
    scale=1.0,
    freeze_spatial=True,
)
dataset = dict(num_frames=17)
validation_dataset = dict(num_frames=17)
image_ratio = 0.2
kl_weight = 1e-6
