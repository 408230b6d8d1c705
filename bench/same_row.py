"""A tool that does nothing: its time and memory are those of the runner. Used by bench/data.py.

Run: python -m bench.same_row IN OUT
"""

from tools.runner import Row, run


def same_row(row: Row) -> Row:
    """The row with one column more."""
    return {**row, "flow": 1.5}


if __name__ == "__main__":
    run(same_row)
