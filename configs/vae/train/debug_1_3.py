"""A tiny autoencoder of Open-Sora 1.3's kind on drawn clips, in overlapping pieces of 5 frames.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/debug_1_3.py
Expect: a falling L1 loss.
"""

_base_ = ["debug.py"]
vae = dict(
    _delete_=True,
    type="OpenSoraVAE_V1_3",
    hidden_size=8,
    num_res_blocks=1,
    norm_groups=4,
    micro_batch_size=2,
    micro_frame_size=5,
    temporal_overlap=True,
)
dataset = dict(num_frames=9)  # two pieces that share a frame
validation_dataset = dict(num_frames=9)
run_dir = "outputs/debug-vae-1-3"
