"""The demo's autoencoder: the small one that ships in assets/vae-small, tuned for a minute on the demo's shots.

Run:    make demo, or with shots of your own:
        torchrun --nproc_per_node 2 -m opensora.cli.train configs/vae/train/demo.py dataset.data_path=shots.csv \
            validation_dataset.data_path=shots.csv
Expect: the PSNR on held-back frames that assets/vae-small/README.md states, or a little more.
"""

_base_ = ["small.py"]
vae = dict(_delete_=True, type="CausalVAEModel", from_pretrained="assets/vae-small")
principal_start = False
dataset = dict(data_path="outputs/demo/data/manifest.csv", time_range=(0.0, 0.7), cache_megabytes=256)
optimizer = dict(type="AdamW", lr=5e-5, betas=(0.9, 0.99))
warmup_steps = 10
steps, save_every, log_every, validate_every = 60, 20, 5, 0
ema_decay = None
run_dir = "outputs/demo/autoencoder"
