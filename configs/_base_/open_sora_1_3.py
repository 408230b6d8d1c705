# The parts that every Open-Sora 1.3 recipe shares besides its autoencoder: those of 1.2, windows and rotation by place.
# Given frames are a condition of their own there, no mask: mask_ratios = dict(i2v_head=0.25, v2v_head=0.1) draws them.
_base_ = ["./open_sora_1_2.py"]
model = dict(_delete_=True, type="STDiT3-XL/2-v1.3")
scheduler = dict(release="1.3")
mask_ratios = None
