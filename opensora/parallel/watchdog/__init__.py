"""Ends a job in which a rank died or hangs, and names the rank."""
