"""Sample from what configs/latte_t2v/train/debug.py trained: noise, but a whole sampling run in seconds.

Run:    opensora sample configs/latte_t2v/sample/debug.py --prompt "a red circle moves left"
Expect: one mp4 of 5 frames of 16x16 with its json in outputs/latte_t2v-debug/samples.
"""

load = "outputs/latte_t2v-debug"
scheduler = dict(type="PNDM", num_sampling_steps=4, cfg_scale=2.0)
dtype = "fp32"
save_dir = "outputs/latte_t2v-debug/samples"
