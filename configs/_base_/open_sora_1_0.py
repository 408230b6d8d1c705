# The parts that every Open-Sora 1.0 recipe shares: SD's image autoencoder per frame, T5-XXL, IDDPM, STDiT-XL/2.
vae = dict(
    type="VideoAutoencoderKL",
    from_pretrained="stabilityai/sd-vae-ft-ema",
    micro_batch_size=4,  # frames encoded at once
    config=dict(  # the architecture behind that hub id, so that nothing is downloaded to plan a run
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=256,
    ),
)
text_encoder = dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", model_max_length=120)
scheduler = dict(type="iddpm")
optimizer = dict(type="AdamW", lr=2e-5, weight_decay=0.0)
plugin = "zero2"
dtype = "bf16"
grad_checkpoint = True
grad_clip = 1.0
ema_decay = 0.9999
seed = 42
log_every = 10
save_every = 1000
num_workers = 4
