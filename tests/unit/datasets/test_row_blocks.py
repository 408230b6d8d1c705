"""Columns that are not read although their names come close to ones that are."""

import pytest

from opensora.datasets.row_blocks import misspelled
from opensora.sampling.requests import COLUMNS


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("strenght", "strength"),
        ("Negative Prompt", "negative_prompt"),
        ("seeds", "seed"),
        ("first-frames", "first_frame"),
        ("weight", None),
        ("path", None),
        ("aes", None),
        ("seed", None),
    ],
)
def test_a_near_name_is_a_sentence(column: str, meant: str | None) -> None:
    notes = misspelled("p.csv", ["text", column], COLUMNS)
    expected = f"p.csv: column {column!r} is not read; its name would be {meant!r}; rename it if that is meant"
    assert notes == ([] if meant is None else [expected])


def test_a_column_that_is_there_is_not_meant_by_another() -> None:
    assert misspelled("p.csv", ["text", "seed", "seeds"], COLUMNS) == []
