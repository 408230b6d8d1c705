"""Does it learn words? A small STDiT on MovingObjects: objects and motions whose pairs it never saw.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/stdit/train/objects.py
        then the three lines of configs/stdit/sample/objects.py
        With an autoencoder tuned by configs/vae/train/objects.py: vae.from_pretrained=outputs/objects-vae
Cost:   about 3 s of one CPU core (AMD EPYC, AVX-512 bf16) for each step of 64 clips, start-up not counted
Expect: the loss falls; the figures of the three lines say what was learnt
"""

vae = dict(type="CausalVAEModel", from_pretrained="assets/vae-small")
text_encoder = dict(type="minilm", model_max_length=16)  # the longest caption has 13 tokens
# 9 frames of 64x64 are 3x8x8 latents, so 3x4x4 tokens
model = dict(type="STDiT", hidden_size=256, depth=6, num_heads=4, patch_size=(1, 2, 2), pred_sigma=False)
# objects and motions are decided at high noise, so training prefers it
scheduler = dict(type="rflow", num_sampling_steps=30, cfg_scale=2.5, sample_method="logit-normal", loc=1.0)
dataset = dict(type="MovingObjects", clips=163840, num_frames=9, image_size=(64, 64))
optimizer = dict(type="AdamW", lr=1e-3)
lr_scheduler = dict(type="cosine", end_factor=0.02)
warmup_steps = 100
ema_decay = 0.99
plugin, dtype = "zero2", "auto"
batch_size, micro_batches = 32, 2
steps, save_every, log_every, keep_last = 2000, 250, 20, 1
run_dir = "outputs/objects"
