# CausalVAEModel with the released kinds of blocks at an eighth of their width, 3.0 M parameters.
_base_ = ["small_vae_stages.py"]
vae = dict(
    type="CausalVAEModel",
    hidden_size=16,
    hidden_size_mult=(1, 2, 4, 4),
    num_res_blocks=1,
    z_channels=16,
    embed_dim=16,
    norm_groups=8,
)
lr_groups = dict(time=1e-3)  # the layers that halve and double the frames are new, or their mixing factors are reset
