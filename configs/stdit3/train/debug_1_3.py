"""STDiT3 of 1.3 on drawn clips with given frames as conditions: windows, rotation by place. Seconds on a laptop CPU.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/stdit3/train/debug_1_3.py
Expect: six steps with losses from about 3 to below 2, as configs/stdit3/train/debug.py.
"""

_base_ = ["./debug.py"]
model = dict(kernel_size=(3, 3, -1), use_spatial_rope=True, conditioned=True, freeze_y_embedder=False)
scheduler = dict(release="1.3")
mask_ratios = dict(_delete_=True, i2v_head=0.25, i2v_loop=0.25, v2v_head=0.25)
run_dir = "outputs/stdit3-debug-1-3"
