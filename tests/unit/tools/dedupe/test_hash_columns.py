"""Cells become arrays; an empty one becomes zeros, a wrong one an error."""

from typing import Any

import numpy as np
import pyarrow
import pytest

from opensora.errors import DataError
from tools.dedupe.hash_columns import parse_hashes, parse_numbers, parse_vectors


def test_hexadecimal_digits_become_numbers_of_64_bits() -> None:
    column = pyarrow.array(["00000000000000ff0123456789abcdef", None, "", " FFFFFFFFFFFFFFFF0000000000000000 "])
    expected = [[255, 0x0123456789ABCDEF], [0, 0], [0, 0], [(1 << 64) - 1, 0]]
    assert parse_hashes(column, "a").tolist() == expected
    assert parse_hashes(column[1:], "a").tolist() == expected[1:]  # a slice has an offset
    assert parse_hashes(pyarrow.array([None, ""]), "a").shape == (2, 0)


@pytest.mark.parametrize("cells", [["0" * 16, "0" * 32], ["0" * 15], ["g" * 16], ["é" * 16]])
def test_other_texts_are_no_hashes(cells: list[str]) -> None:
    with pytest.raises(DataError, match=r"^a\.csv: frame_hash: '.*; run tools\.dedupe\.fingerprint"):
        parse_hashes(pyarrow.array(cells), "a.csv: frame_hash")


def test_numbers_come_as_numbers_or_text() -> None:
    np.testing.assert_array_equal(parse_numbers(pyarrow.array([1, None, 3]), "a"), [1, np.nan, 3])
    np.testing.assert_array_equal(parse_numbers(pyarrow.array(["1.5", "", " 2 "]), "a"), [1.5, np.nan, 2])
    with pytest.raises(DataError, match=r"^a: quality: .*'good'"):
        parse_numbers(pyarrow.array(["good"]), "a: quality")


@pytest.mark.parametrize("kind", [None, pyarrow.list_(pyarrow.float32(), 2)])
def test_vectors_come_as_lists_or_text(kind: Any) -> None:
    cells = [[1.0, 2.0], None, [0.5, -1.0]]
    expected = [[1, 2], [0, 0], [0.5, -1]]
    assert parse_vectors(pyarrow.array(cells, kind), "a").tolist() == expected
    assert parse_vectors(pyarrow.array(["[1, 2]", "", "[0.5, -1.0]"]), "a").tolist() == expected


@pytest.mark.parametrize("cells", [[[1.0], [1.0, 2.0, 3.0]], [[1.0, float("nan")]], ["[1"], [3.0]])
def test_other_cells_are_no_vectors(cells: list[Any]) -> None:
    with pytest.raises(DataError, match=r"^a: embedding: .*; run tools\.dedupe\.embed"):
        parse_vectors(pyarrow.array(cells), "a: embedding")
