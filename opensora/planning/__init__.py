"""Estimates of a training step on machines that are not at hand: memory, arithmetic, traffic and time."""
