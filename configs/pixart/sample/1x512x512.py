"""Images of 512x512 from PixArt-alpha: DPM-Solver, 20 steps, guidance 7.

Run:    python -m tools.weights.convert PixArt-XL-2-512x512.pth outputs/pixart-1x512x512 --from pixart-alpha \
            --to PixArt-XL/2 input_size=[1,64,64]
        opensora sample configs/pixart/sample/1x512x512.py --prompt "a calm sea at dawn"
Expect: not run here (needs an accelerator, T5-XXL and the released weights).
"""

load = "outputs/pixart-1x512x512"
scheduler = dict(type="dpm-solver", num_sampling_steps=20, cfg_scale=7.0)
num_frames, image_size, fps = 1, (512, 512), 1
save_dir = "outputs/pixart-1x512x512/samples"
