"""Open-Sora-Plan 1.1, stage 3: LatteT2V-XL/122 on 513 frames of 512x512 beside four pictures.

Run:    torchrun --nnodes 64 --nproc_per_node 8 -m opensora.cli.train configs/latte_t2v/train/513x512x512.py \
            dataset.videos.data_path=clips.csv dataset.pictures.data_path=images.csv \
            vae.from_pretrained=Open-Sora-Plan-v1.1.0/vae
Expect: not run here (needs accelerators and T5-XXL); the stage was unfinished when 1.1 was released, and how many devices
        shared a clip is not known: eight, as in stage 2.
"""

_base_ = ["../../_base_/open_sora_plan_1_1.py"]
load = "outputs/latte_t2v-221x512x512"
dataset = dict(videos=dict(num_frames=513))
plugin, sp_size = "zero2-seq", 8  # eight devices share the tokens of each clip
batch_size, micro_batches = 1, 64  # clips with their pictures in a micro-batch, micro-batches in a step
save_every = 250
run_dir = "outputs/latte_t2v-513x512x512"
