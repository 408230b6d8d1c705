# The parts that every Open-Sora-Plan 1.1 recipe shares: its causal autoencoder, T5-XXL with 300 tokens, LatteT2V.
vae = dict(type="CausalVAEModel", use_tiling=True)  # the released layout; its weights are named on the command line
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=300)
model = dict(type="LatteT2V-XL/122")
# four pictures beside each clip, every one with a caption of its own
dataset = dict(
    type="JointDataset",
    videos=dict(type="VideoTextDataset", data_path="clips.csv", image_size=(512, 512)),
    pictures=dict(type="VideoTextDataset", data_path="images.csv", num_frames=1, image_size=(512, 512)),
    use_image_num=4,
)
scheduler = dict(type="iddpm", cfg_scale=7.5, cfg_channel=None)
optimizer = dict(type="AdamW", lr=2e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
lr_scheduler = dict(type="constant")
warmup_steps = 0
grad_clip = 1.0
ema_decay = None  # the releases are no averages
plugin, dtype = "zero2", "bf16"
grad_checkpoint = True
steps = 1_000_000
log_every = 10
num_workers = 8
