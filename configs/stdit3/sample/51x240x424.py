"""Videos of 51 frames of 240x424 as Open-Sora 1.2 samples them: rectified flow, 30 steps, guidance 7, 24 frames/s.

Run:    opensora sample configs/stdit3/sample/51x240x424.py --load outputs/stdit3-51x240x424 --prompt "a calm sea at dawn"
Expect: not run here (needs accelerators and T5-XXL). Released weights are sampled from the folder that
        `python -m tools.weights.convert ... --from stdit3` writes.
"""

load = "outputs/stdit3-51x240x424"
scheduler = dict(type="rflow", num_sampling_steps=30, cfg_scale=7.0, use_timestep_transform=True)
num_frames, image_size, fps = 51, (240, 424), 24
save_dir = "outputs/stdit3-51x240x424/samples"
