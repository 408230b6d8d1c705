"""Videos of 16 frames of 256x256 from configs/pixart/train/16x256x256.py: 100 steps, guidance 7, 8 frames/s.

Run:    opensora sample configs/pixart/sample/16x256x256.py --prompt "a calm sea at dawn"
Expect: not run here (needs accelerators and T5-XXL).
"""

load = "outputs/pixart-16x256x256"
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0)
num_frames, image_size, fps = 16, (256, 256), 8
save_dir = "outputs/pixart-16x256x256/samples"
