# The parts that every Open-Sora 1.1 recipe shares: those of 1.0, longer captions, and frames that are given.
_base_ = ["./open_sora_1_0.py"]
text_encoder = dict(model_max_length=200)
model = dict(type="STDiT2-XL/2", qk_norm=True, qk_norm_legacy=True, input_sq_size=512)
scheduler = dict(type="iddpm", learn_sigma=True, cfg_channel=3, table_dtype="float32")
mask_ratios = dict(
    identity=0.75,
    quarter_random=0.025,
    quarter_head=0.025,
    quarter_tail=0.025,
    quarter_head_tail=0.05,
    image_random=0.025,
    image_head=0.025,
    image_tail=0.025,
    image_head_tail=0.05,
)
