"""A tiny autoencoder of Stable Video Diffusion's kind on drawn clips: frames encoded alone, decoded together.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/debug_svd.py
Expect: a falling L1 loss. The released weights: vae.from_pretrained=stabilityai/stable-video-diffusion-img2vid-xt
        and vae.subfolder=vae in place of vae.config.
"""

_base_ = ["debug.py"]
vae = dict(
    _delete_=True,
    type="VideoAutoencoderKLTemporalDecoder",
    config=dict(  # norms always have 32 groups, so no level is narrower
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=2,
    ),
)
run_dir = "outputs/debug-vae-svd"
