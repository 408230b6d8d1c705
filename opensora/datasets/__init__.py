"""Data sets: a manifest row becomes a clip, clips become batches."""
