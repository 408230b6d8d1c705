"""STDiT3 of 1.2 on drawn clips with given frames: a whole training run in seconds on a laptop CPU. The autoencoder is
untrained.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/stdit3/train/debug.py
Expect: six steps with losses from about 3 to below 2; the start is above 1, as the final layer is open from the first step.
"""

_base_ = ["../../_base_/tiny_vae.py"]
text_encoder = dict(type="minilm", model_max_length=12)
model = dict(
    type="STDiT3",
    hidden_size=48,
    depth=2,
    num_heads=2,
    patch_size=(1, 2, 2),
    input_sq_size=16,
    freeze_y_embedder=True,
)
scheduler = dict(type="rflow", num_sampling_steps=4, cfg_scale=2.0, sample_method="logit-normal")
mask_ratios = dict(image_head=0.25, random=0.25)
dataset = dict(type="MovingShapes", clips=64, num_frames=5, image_size=(16, 16))
optimizer = dict(type="AdamW", lr=1e-3)
warmup_steps = 2
ema_decay = 0.9
plugin, dtype = "zero2", "fp32"
batch_size, micro_batches = 2, 2
steps, save_every, log_every, keep_last = 6, 2, 1, 2
run_dir = "outputs/stdit3-debug"
