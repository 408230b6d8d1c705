"""Open-Sora-Plan 1.1, stage 1: LatteT2V-XL/122 on 65 frames of 512x512 at the videos' own rate, beside four pictures.

Run:    torchrun --nnodes 10 --nproc_per_node 8 -m opensora.cli.train configs/latte_t2v/train/65x512x512.py \
            dataset.videos.data_path=clips.csv dataset.pictures.data_path=images.csv \
            vae.from_pretrained=Open-Sora-Plan-v1.1.0/vae load=t2v.pt
        load: weights of a LatteT2V trained before; the recipe starts from one of the Latte family.
Expect: not run here (needs accelerators and T5-XXL). The recipe took 72 hours on 80 H100 and was best at 40 to 60
        thousand steps.
"""

_base_ = ["../../_base_/open_sora_plan_1_1.py"]
dataset = dict(videos=dict(num_frames=65))
batch_size, micro_batches = 2, 80  # clips with their pictures in a micro-batch, micro-batches: 160 clips
num_workers = 10
save_every = 500
run_dir = "outputs/latte_t2v-65x512x512"
