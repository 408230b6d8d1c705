"""Random numbers that depend on a value and a seed alone: equal on every machine, in any order of the rows."""

from tools.datasets.moved_path import text

RANGE = 2**64


def draw(value: str, seed: int) -> str:
    """SQL of a whole number below RANGE. value: SQL of what it depends on."""
    return f"md5_number_lower({text(f'{seed}:')} || CAST({value} AS VARCHAR))"
