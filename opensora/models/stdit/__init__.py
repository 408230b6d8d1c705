"""STDiT, STDiT2 and STDiT3: the spatial-temporal diffusion transformers of Open-Sora 1.0 to 1.3."""
