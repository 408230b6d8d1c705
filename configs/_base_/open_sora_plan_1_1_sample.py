# What sampling with Open-Sora-Plan 1.1 shares over its lengths; the weights of both networks are named beside it.
model = dict(type="LatteT2V-XL/122")
vae = dict(type="CausalVAEModel", use_tiling=True)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=300)
scheduler = dict(type="PNDM", num_sampling_steps=150, cfg_scale=7.5)
image_size = (512, 512)
fps = 24
