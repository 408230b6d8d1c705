"""Videos of 221 frames of 512x512 as Open-Sora-Plan 1.1 samples them: PNDM, 150 steps, guidance 7.5, 24 frames/s.

Run:    opensora sample configs/latte_t2v/sample/221x512x512.py vae.from_pretrained=Open-Sora-Plan-v1.1.0/vae \
            --load outputs/latte_t2v-221x512x512 --prompt "a calm sea at dawn"
Expect: not run here (needs accelerators and T5-XXL). PNDM asks the model nine times more than it has steps. The
        release recommends --negative-prompt "distorted, discontinuous, ugly, blurry, low resolution, motionless,
        static, low quality".
"""

_base_ = ["../../_base_/open_sora_plan_1_1_sample.py"]
load = "outputs/latte_t2v-221x512x512"
num_frames = 221
save_dir = "outputs/latte_t2v-221x512x512/samples"
