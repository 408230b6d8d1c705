"""Neural networks: no devices, no process groups, no config."""
