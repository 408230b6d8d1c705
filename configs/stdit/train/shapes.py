"""Does it learn? A small STDiT on MovingShapes: color, shape and direction of combinations it never saw.

Run:    torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/shapes.py
        torchrun --nproc_per_node 2 -m opensora.cli.train configs/stdit/train/shapes.py vae.from_pretrained=outputs/shapes-vae
        then the three lines of configs/stdit/sample/shapes.py
Cost:   736 s for both trainings on 2 CPU cores (AMD EPYC, AVX-512 bf16), start-up included; the autoencoder starts from
        assets/vae-small, whose own training on real footage is not counted. Measured with the weights that stood there before
Expect: accuracy 1.0 for color, 1.0 for shape, 1.0 for direction on 64 clips of the 16 held-out combinations
"""

vae = dict(type="CausalVAEModel", from_pretrained="assets/vae-small")  # the tuned one is named on the command line
text_encoder = dict(type="minilm", model_max_length=12)
model = dict(type="STDiT", hidden_size=256, depth=6, num_heads=4, patch_size=(1, 1, 1), pred_sigma=False)
# most of what tells shapes and directions apart is decided at high noise, so training prefers it
scheduler = dict(type="rflow", num_sampling_steps=30, cfg_scale=2.5, sample_method="logit-normal", loc=1.0)
dataset = dict(type="MovingShapes", clips=65536, num_frames=9, image_size=(32, 32))
optimizer = dict(type="AdamW", lr=1e-3)
lr_scheduler = dict(type="cosine", end_factor=0.02)
warmup_steps = 50
ema_decay = 0.99
plugin, dtype = "zero2", "auto"
batch_size, micro_batches = 32, 2
steps, save_every, log_every, keep_last = 1000, 200, 20, 1
run_dir = "outputs/shapes"
