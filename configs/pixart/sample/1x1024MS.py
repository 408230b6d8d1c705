"""Images of 1024x1024, or of other sizes, from PixArt-alpha: DPM-Solver, 20 steps, guidance 7.

Run:    python -m tools.weights.convert PixArt-XL-2-1024-MS.pth outputs/pixart-1x1024ms --from pixart-alpha \
            --to PixArtMS-XL/2 input_size=[1,128,128] space_scale=2.0
        opensora sample configs/pixart/sample/1x1024MS.py --prompt "a calm sea at dawn"
Expect: not run here (needs an accelerator, T5-XXL and the released weights).
"""

load = "outputs/pixart-1x1024ms"
scheduler = dict(type="dpm-solver", num_sampling_steps=20, cfg_scale=7.0)
num_frames, image_size, fps = 1, (1024, 1024), 1
save_dir = "outputs/pixart-1x1024ms/samples"
