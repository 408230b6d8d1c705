# The autoencoder of Open-Sora 1.3 as released: 4x8x8, 16 latent channels; its latents are normalised by the released
# statistics of videos. Its other arguments are the defaults of its class.
vae = dict(
    type="OpenSoraVAE_V1_3",
    from_pretrained="hpcai-tech/OpenSora-VAE-v1.3",
    micro_batch_size=1,  # clips coded at once
)
