"""Latte: DiT's blocks, attending within a frame and along time by turns."""
