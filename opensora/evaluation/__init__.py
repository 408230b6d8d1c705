"""Measures over tensors: how good is a video, and does it show what the prompt says."""
