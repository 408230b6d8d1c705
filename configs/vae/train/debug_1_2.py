"""A tiny autoencoder of Open-Sora 1.2's kind on drawn clips: per frame, then in time, 5 frames together.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/debug_1_2.py
Expect: a falling L1 loss; both parts are trained (vae.freeze_spatial=True trains the one in time only).
"""

_base_ = ["debug.py"]
vae = dict(
    _delete_=True,
    type="OpenSoraVAE_V1_2",
    spatial=dict(
        config=dict(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        ),
    ),
    temporal=dict(filters=8, num_res_blocks=1, num_groups=4),
    micro_frame_size=5,
)
dataset = dict(num_frames=9)  # two pieces, of 5 and 4 frames
validation_dataset = dict(num_frames=9)
run_dir = "outputs/debug-vae-1-2"
