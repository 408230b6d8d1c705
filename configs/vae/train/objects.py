"""The small autoencoder of assets/vae-small, tuned on MovingObjects: 9 frames of 64x64 become 3x8x8 latents.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/objects.py
Expect: the PSNR on pairs that training never shows, in the lines of outputs/objects-vae/metrics.jsonl with validation_psnr.
"""

_base_ = ["shapes.py"]
dataset = dict(_delete_=True, type="MovingObjects", clips=5120, num_frames=9, image_size=(64, 64))
validation_dataset = dict(
    _delete_=True, type="MovingObjects", clips=64, num_frames=9, image_size=(64, 64), split="holdout"
)
run_dir = "outputs/objects-vae"
