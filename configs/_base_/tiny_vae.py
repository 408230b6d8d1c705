# An autoencoder of 0.1 M parameters, 2x2 in space and 2x in time: debug runs only.
_levels = ("ResnetBlock3D", "ResnetBlock3D")
vae = dict(
    type="CausalVAEModel",
    hidden_size=8,
    hidden_size_mult=(1, 2),
    num_res_blocks=1,
    norm_groups=4,
    encoder_resnet_blocks=_levels,
    decoder_resnet_blocks=_levels,
    encoder_spatial_downsample=("Downsample", ""),
    encoder_temporal_downsample=("TimeDownsampleRes2x", ""),
    decoder_spatial_upsample=("", "SpatialUpsample2x"),
    decoder_temporal_upsample=("", "TimeUpsampleRes2x"),
)
