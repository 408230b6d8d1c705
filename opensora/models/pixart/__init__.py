"""PixArt-alpha's image models, as Open-Sora 1.0 carries them."""
