"""Files of lists of addresses: `python -m tools.download LIST OUT.csv --folder FOLDER`."""
