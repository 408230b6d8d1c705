"""STDiT: Open-Sora 1.0 spatial-temporal diffusion transformer."""
