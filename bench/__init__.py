"""Measurements of speed, memory and robustness on the machine they run on; `opensora bench` prints them."""
