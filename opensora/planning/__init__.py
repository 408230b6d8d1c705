"""What a training step costs on machines that are not at hand: memory, arithmetic, traffic and time, without data."""
