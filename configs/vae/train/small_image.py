"""A small image autoencoder, per frame: the start of small_stage1.py and of small_1_2_stage1.py.

Run:    make install-demo && python -m tools.demo.run --only footage
        torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/small_image.py
Expect: tried with steps=300 in one process: 23.0 dB PSNR on held-back frames, 22.0 of the averaged weights.
"""

_base_ = ["../../_base_/small_vae_stages.py"]
vae = dict(
    type="VideoAutoencoderKL",
    config=dict(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=16,
    ),
)
dataset = dict(num_frames=1)
validation_dataset = dict(num_frames=1)
optimizer = dict(type="AdamW", lr=1e-3)
kl_weight = 1e-6
batch_size, micro_batches = 8, 2
steps = 1000
run_dir = "outputs/small-image"
