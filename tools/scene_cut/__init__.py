"""Where videos become shots."""
