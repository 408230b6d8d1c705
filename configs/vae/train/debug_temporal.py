"""A tiny VAE_Temporal on drawn clips: 4x in time, straight from pixels instead of an image autoencoder's latents.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/debug_temporal.py
Expect: a falling L1 loss.
"""

_base_ = ["debug.py"]
vae = dict(_delete_=True, type="VAE_Temporal", in_out_channels=3, filters=8, num_res_blocks=1, num_groups=4)
run_dir = "outputs/debug-vae-temporal"
