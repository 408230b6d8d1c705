"""LatteT2V on drawn clips: a whole training run in seconds on a laptop CPU. The autoencoder is untrained.

Run:    opensora train configs/latte_t2v/train/debug.py
Expect: six steps with losses near 1, the variance of the noise: the latents of the untrained autoencoder are small.
"""

_base_ = ["../../_base_/tiny_vae.py"]
text_encoder = dict(type="minilm", model_max_length=12)
model = dict(type="LatteT2V", num_layers=2, num_attention_heads=2, attention_head_dim=16)
scheduler = dict(type="iddpm")
dataset = dict(type="MovingShapes", clips=64, num_frames=5, image_size=(16, 16))
optimizer = dict(type="AdamW", lr=1e-3)
warmup_steps = 2
ema_decay = 0.9
plugin, dtype = "zero2", "fp32"
batch_size, micro_batches = 2, 2
steps, save_every, log_every, keep_last = 6, 2, 1, 2
run_dir = "outputs/latte_t2v-debug"
