"""Data preparation: `python -m tools.<stage>.<name> in.csv out.csv`, each a function of one row."""
