"""Videos of 16 frames of 256x256 as Open-Sora 1.0 samples them: 100 steps, guidance 7 on three channels, 8 frames/s.

Run:    opensora sample configs/stdit/sample/16x256x256.py --prompt "a calm sea at dawn"
        or, from released weights:
        python -m tools.weights.convert OpenSora-v1-HQ-16x256x256.pth outputs/stdit-hq-16x256x256 --from stdit
        opensora sample configs/stdit/sample/16x256x256.py --load outputs/stdit-hq-16x256x256 --prompt "a calm sea at dawn"
Expect: not run here (needs accelerators and T5-XXL).
"""

load = "outputs/stdit-16x256x256"
scheduler = dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0, cfg_channel=3)
num_frames, image_size, fps = 16, (256, 256), 8
save_dir = "outputs/stdit-16x256x256/samples"
