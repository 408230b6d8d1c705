"""Videos of 16 frames of 240x424 as Open-Sora 1.1 samples them: 100 steps, guidance 7 on three channels, 8 frames/s.

Run:    opensora sample configs/stdit2/sample/16x240x424.py --load outputs/stdit2-16x240x424 --prompt "a calm sea at dawn"
Expect: not run here (needs accelerators and T5-XXL). Released weights are sampled from the folder that
        `python -m tools.weights.convert ... --from stdit2` writes.
"""

load = "outputs/stdit2-16x240x424"
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0, cfg_channel=3, table_dtype="float32")
num_frames, image_size, fps = 16, (240, 424), 8
save_dir = "outputs/stdit2-16x240x424/samples"
