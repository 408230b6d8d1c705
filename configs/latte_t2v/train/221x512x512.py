"""Open-Sora-Plan 1.1, stage 2: LatteT2V-XL/122 on 221 frames of 512x512, from the weights of stage 1.

Run:    torchrun --nnodes 8 --nproc_per_node 8 -m opensora.cli.train configs/latte_t2v/train/221x512x512.py \
            dataset.data_path=clips.csv vae.from_pretrained=Open-Sora-Plan-v1.1.0/vae
Expect: not run here (needs accelerators and T5-XXL). The recipe took 72 hours on 512 Ascend devices, eight to a clip.
        Position tables are no part of the weights, so those of stage 1 load as they are. The recipe also trained on
        four images beside each clip; training here is on video only as yet.
"""

_base_ = ["../../_base_/open_sora_plan_1_1.py"]
load = "outputs/latte_t2v-65x512x512"
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=221, image_size=(512, 512))
batch_size, micro_batches = 1, 64  # clips in a micro-batch, micro-batches in a step
save_every = 250
run_dir = "outputs/latte_t2v-221x512x512"
