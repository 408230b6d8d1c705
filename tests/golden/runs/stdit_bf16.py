"""A tiny STDiT in bf16 with an average of its weights: the run folder in the archive was written with this file."""

task = "diffusion"
vae = dict(
    type="CausalVAEModel",
    hidden_size=4,
    hidden_size_mult=(1, 1),
    num_res_blocks=1,
    norm_groups=2,
    encoder_resnet_blocks=("ResnetBlock3D", "ResnetBlock3D"),
    decoder_resnet_blocks=("ResnetBlock3D", "ResnetBlock3D"),
    encoder_spatial_downsample=("Downsample", ""),
    encoder_temporal_downsample=("TimeDownsampleRes2x", ""),
    decoder_spatial_upsample=("", "SpatialUpsample2x"),
    decoder_temporal_upsample=("", "TimeUpsampleRes2x"),
)
text_encoder = dict(type="minilm", model_max_length=4)
model = dict(type="STDiT", hidden_size=8, depth=1, num_heads=1, patch_size=(1, 2, 2))
scheduler = dict(type="rflow", num_sampling_steps=4)
dataset = dict(type="MovingShapes", clips=16, num_frames=5, image_size=(8, 8))
optimizer = dict(type="AdamW", lr=1e-3)
warmup_steps = 2
ema_decay = 0.9
plugin, dtype = "zero2", "bf16"
batch_size, micro_batches = 2, 2
steps, save_every, keep_last = 8, 4, 2
run_dir = "run"
