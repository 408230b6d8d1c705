# The parts that every Open-Sora 1.2 recipe shares besides its autoencoder: T5-XXL with 300 tokens, rectified flow with
# timesteps from a logit-normal that move towards noise for large clips, and the caption embedder as it was loaded.
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=300)
model = dict(type="STDiT3-XL/2", qk_norm=True, freeze_y_embedder=True)
scheduler = dict(type="rflow", sample_method="logit-normal", use_timestep_transform=True)
mask_ratios = dict(
    random=0.005,
    interpolate=0.002,
    quarter_random=0.007,
    quarter_head=0.002,
    quarter_tail=0.002,
    quarter_head_tail=0.002,
    image_head=0.22,
    image_tail=0.005,
    image_head_tail=0.005,
)
optimizer = dict(type="AdamW", lr=1e-4, eps=1e-15, weight_decay=0.0)
warmup_steps = 1000
plugin = "zero2"
dtype = "bf16"
grad_checkpoint = True
grad_clip = 1.0
ema_decay = 0.99
seed = 42
log_every = 10
save_every = 200
num_workers = 8
