"""LatteT2V, the denoiser of Open-Sora-Plan."""
