"""Open-Sora-Plan 1.1's CausalVAEModel as released, against its 3-D discriminator, on 17 frames of 256x256.

Run:    torchrun --nproc_per_node 8 -m opensora.cli.train configs/vae/train/17x256x256.py dataset.data_path=clips.csv \
            validation_dataset.data_path=held-back.csv perceptual.weights="['vgg16.pth','vgg_lpips.pth']"
        perceptual.weights: torchvision's VGG16 and LPIPS' linear heads, see docs/training.md.
        vae.from_pretrained: weights to go on from, for example of an image autoencoder (docs/weights.md, sd-vae).
Expect: not run here (needs accelerators). The recipe counts its steps twice per batch: its 100,000 steps and its
        discriminator's start at 2,001 are 50,000 and 1,001 here; its KL weight stands next to one frame, here next to 17.
"""

task = "autoencoder"
vae = dict(type="CausalVAEModel")
dataset = dict(type="VideoTextDataset", data_path="clips.csv", num_frames=17, image_size=(256, 256), captions=False)
validation_dataset = dict(
    type="VideoTextDataset",
    data_path="held-back.csv",
    num_frames=17,
    image_size=(256, 256),
    start="center",
    captions=False,
)
optimizer = dict(type="AdamW", lr=1e-5, betas=(0.5, 0.9))
disc_optimizer = dict(type="AdamW", lr=1e-5, betas=(0.5, 0.9))
grad_clip = 1.0
ema_decay = None
reconstruction_loss = "l1"
kl_weight = 17e-6
perceptual = dict(type="LPIPS", weights=["vgg16.pth", "vgg_lpips.pth"])
perceptual_weight = 1.0
discriminator = dict(type="PatchDiscriminator3D")
disc_loss, disc_start, disc_weight = "hinge", 1001, 0.5
plugin, dtype = "ddp", "auto"
batch_size, micro_batches = 1, 8  # one clip on each of eight devices
num_workers = 8
seed = 1006
steps, save_every, validate_every, keep_last = 50000, 1000, 1000, 3
run_dir = "outputs/vae-17x256x256"
