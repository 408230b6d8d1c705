"""The training system: one loop, one step per task."""
