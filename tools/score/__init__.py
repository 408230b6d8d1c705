"""Tools that score clips."""
