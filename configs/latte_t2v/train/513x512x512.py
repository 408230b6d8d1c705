"""Open-Sora-Plan 1.1, stage 3: LatteT2V-XL/122 on 513 frames of 512x512, from the weights of stage 2.

Run:    torchrun --nnodes 8 --nproc_per_node 8 -m opensora.cli.train configs/latte_t2v/train/513x512x512.py \
            dataset.data_path=clips.csv vae.from_pretrained=Open-Sora-Plan-v1.1.0/vae
Expect: not run here (needs accelerators and T5-XXL); the stage was unfinished when 1.1 was released. The recipe also
        trained on four images beside each clip; training here is on video only as yet.
"""

_base_ = ["../../_base_/open_sora_plan_1_1.py"]
load = "outputs/latte_t2v-221x512x512"
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=513, image_size=(512, 512))
batch_size, micro_batches = 1, 64  # clips in a micro-batch, micro-batches in a step
save_every = 250
run_dir = "outputs/latte_t2v-513x512x512"
