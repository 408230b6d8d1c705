"""Repeated rows, found by hash and confirmed by their paths."""

import numpy as np
import pyarrow

from opensora.datasets.duplicate_rows import first_of_equals, hash_strings


def test_colliding_hashes_are_compared_by_path() -> None:
    paths = pyarrow.chunked_array([["0", "1", "2"], ["0"]], pyarrow.large_string())
    nan = np.full(4, np.nan)
    first = first_of_equals(
        paths, nan, nan, np.ones(4, dtype=np.bool_), hash_paths=lambda chunk: np.zeros(len(chunk), dtype=np.uint64)
    )
    assert first.tolist() == [0, 1, 2, 0]


def test_unusable_rows_repeat_nothing() -> None:
    paths = pyarrow.chunked_array([["a", "a", "a", "a"]], pyarrow.large_string())
    start, end = np.array([np.nan, 0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0, 2.0])
    usable = np.array([True, False, True, True])
    assert first_of_equals(paths, start, end, usable).tolist() == [0, 1, 2, 3]
    usable[1] = True
    assert first_of_equals(paths, start, end, usable).tolist() == [0, 1, 1, 3]


def test_hashes_differ_by_path() -> None:
    paths = [f"/data/{n % 7}/clip-{n}.mp4" for n in range(5000)]
    paths += ["", "a", "b", "ab", "ba", "a" * 8, "a" * 9, "a\0", "\0"]
    hashes = hash_strings(pyarrow.array(paths, pyarrow.large_string()))
    assert len(set(hashes.tolist())) == len(paths)
    part = hash_strings(pyarrow.array(paths, pyarrow.large_string())[3:50])
    assert part.tolist() == hashes[3:50].tolist()  # wherever the path lies in memory
