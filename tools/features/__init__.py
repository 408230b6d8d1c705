"""Features encoded once, before training."""
