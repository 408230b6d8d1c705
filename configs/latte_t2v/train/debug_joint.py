"""LatteT2V on drawn clips, each with two drawn pictures behind its frames: a whole run in seconds on a laptop CPU.

Open-Sora-Plan trains so on clips and still pictures at once; its stages put four pictures beside each clip. The
pictures here are smaller than the clips, so that padding and masks are seen at work. The autoencoder is untrained.

Run:    opensora train configs/latte_t2v/train/debug_joint.py
Expect: six steps with losses below 1: the variance of the noise, less the pictures' padding, which counts as no error.
"""

_base_ = ["debug.py"]
dataset = dict(
    _delete_=True,
    type="JointDataset",
    videos=dict(type="MovingShapes", clips=64, num_frames=5, image_size=(16, 16)),
    pictures=dict(type="MovingShapes", clips=32, num_frames=1, image_size=(16, 12)),
    use_image_num=2,
    ae_stride=2,
    ae_stride_t=2,
)
run_dir = "outputs/latte_t2v-joint-debug"
