"""Caches of a denoiser over its steps: what one call computed, a later one takes over. One file for each method."""
