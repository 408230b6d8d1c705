"""Videos of 49 frames of 240x416 as Open-Sora 1.3 samples them: rectified flow, 30 steps, guidance 7, 24 frames/s.

Run:    opensora sample configs/stdit3/sample/49x240x416.py --load outputs/stdit3-49x240x416 --prompt "a calm sea at dawn"
Expect: not run here (needs accelerators and T5-XXL). Released weights are sampled from the folder that
        `python -m tools.weights.convert ... --from stdit3` writes.
"""

load = "outputs/stdit3-49x240x416"
scheduler = dict(type="rflow", num_sampling_steps=30, cfg_scale=7.0, use_timestep_transform=True, release="1.3")
num_frames, image_size, fps = 49, (240, 416), 24
save_dir = "outputs/stdit3-49x240x416/samples"
