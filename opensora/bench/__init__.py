"""Measurements of speed and memory on the machine they run on; `opensora bench` prints them."""
