"""The demo's diffusion model: a small STDiT that memorises eight real shots, 9 frames of 64x96 at 30 frames/s.

Run:    make demo
Expect: at least 6 of 8 prompts give a clip that is nearest to their own shot; outputs/demo/report.json says how many.
"""

vae = dict(type="CausalVAEModel", from_pretrained="assets/vae-small")  # make demo names the one it has just tuned
text_encoder = dict(type="minilm", model_max_length=40)
model = dict(type="STDiT", hidden_size=384, depth=6, num_heads=6, patch_size=(1, 2, 2), pred_sigma=False)
scheduler = dict(type="rflow", num_sampling_steps=30, cfg_scale=2.0, sample_method="logit-normal", loc=0.5)
# At 30 frames/s even the demo's shortest shot (8 frames at 25) lasts nine. For clips of your own: dataset.fps=None, which
# takes each at its own rate.
dataset = dict(
    type="VideoTextDataset",
    data_path="outputs/demo/data/manifest.csv",
    num_frames=9,
    image_size=(64, 96),
    fps=30.0,
    start="center",
    cache_megabytes=256,
)
optimizer = dict(type="AdamW", lr=1e-3)
lr_scheduler = dict(type="cosine", end_factor=0.05)
warmup_steps = 20
ema_decay = 0.98
plugin, dtype = "zero2", "auto"
batch_size, micro_batches = 8, 2
steps, save_every, log_every, keep_last = 450, 50, 10, 1
run_dir = "outputs/demo/diffusion"
