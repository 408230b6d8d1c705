"""STDiT on drawn clips: a whole training run in seconds on a laptop CPU. The autoencoder is untrained.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/stdit/train/debug.py
Expect: a few steps with a loss near 2 (variance of the noise plus that of the latents).
"""

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
text_encoder = dict(type="minilm", model_max_length=12)
model = dict(type="STDiT", hidden_size=32, depth=2, num_heads=2, patch_size=(1, 2, 2))
scheduler = dict(type="rflow", num_sampling_steps=4, cfg_scale=2.0)
dataset = dict(type="MovingShapes", clips=64, num_frames=5, image_size=(16, 16))
optimizer = dict(type="AdamW", lr=1e-3)
warmup_steps = 2
ema_decay = 0.9
plugin, dtype = "zero2", "fp32"
batch_size, micro_batches = 2, 2
steps, save_every, log_every, keep_last = 6, 2, 1, 2
run_dir = "outputs/debug"
