# The autoencoder of Open-Sora 1.2 as released: 4x8x8, 4 latent channels, 17 frames at a time. Its other arguments are
# the defaults of its class.
vae = dict(
    type="OpenSoraVAE_V1_2",
    from_pretrained="hpcai-tech/OpenSora-VAE-v1.2",
    micro_frame_size=17,  # frames coded together in time
    micro_batch_size=4,  # frames coded at once in space
)
