"""One file per way of sharing a training step between ranks."""
