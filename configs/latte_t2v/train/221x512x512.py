"""Open-Sora-Plan 1.1, stage 2: LatteT2V-XL/122 on 221 frames of 512x512 beside four pictures.

Run:    torchrun --nnodes 64 --nproc_per_node 8 -m opensora.cli.train configs/latte_t2v/train/221x512x512.py \
            dataset.videos.data_path=clips.csv dataset.pictures.data_path=images.csv \
            vae.from_pretrained=Open-Sora-Plan-v1.1.0/vae
Expect: not run here (needs accelerators and T5-XXL). The recipe took 72 hours on 512 Ascend devices, eight to a clip,
        as here; fewer machines make more of the step's 64 micro-batches each. Position tables are no part of the
        weights, so those of stage 1 load as they are.
"""

_base_ = ["../../_base_/open_sora_plan_1_1.py"]
load = "outputs/latte_t2v-65x512x512"
dataset = dict(videos=dict(num_frames=221))
plugin, sp_size = "zero2-seq", 8  # eight devices share the tokens of each clip
batch_size, micro_batches = 1, 64  # clips with their pictures in a micro-batch, micro-batches in a step
save_every = 250
run_dir = "outputs/latte_t2v-221x512x512"
