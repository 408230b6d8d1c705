"""DiT: class- or text-conditioned, its modulation computed by a layer of each block."""
