"""Images of 512x512 as Open-Sora-Plan 1.1 samples them with a video model: PNDM, 50 steps, guidance 5.

Run:    opensora sample configs/latte_t2v/sample/512x512.py vae.from_pretrained=Open-Sora-Plan-v1.1.0/vae \
            --load outputs/latte_t2v-65x512x512 --prompt "a calm sea at dawn"
Expect: not run here (needs accelerators and T5-XXL).
"""

_base_ = ["../../_base_/open_sora_plan_1_1_sample.py"]
load = "outputs/latte_t2v-65x512x512"
scheduler = dict(type="PNDM", num_sampling_steps=50, cfg_scale=5.0)
num_frames = 1
save_dir = "outputs/latte_t2v-65x512x512/images"
