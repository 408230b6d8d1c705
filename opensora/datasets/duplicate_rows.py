"""Rows that repeat another one, found among millions without a Python object per row."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow


def hash_strings(strings: "pyarrow.LargeStringArray") -> NDArray[np.uint64]:
    """Hash each string to 64 bits: a polynomial over its words of 8 bytes."""
    _, offsets_buffer, data = strings.buffers()
    hashes = np.zeros(len(strings), dtype=np.uint64)
    if not len(strings) or data is None:
        return hashes
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[strings.offset : strings.offset + len(strings) + 1]
    raw = bytes(data[int(offsets[0]) : int(offsets[-1])]) + bytes(8)  # a last word may reach beyond the end
    words = np.ndarray(len(raw) - 7, dtype="<u8", buffer=raw, strides=(1,))  # one begins at every byte
    begin, left = offsets[:-1] - offsets[0], np.diff(offsets)
    # The length counts too: a last word is filled with null bytes, and another string may end in such bytes.
    hashes += left.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    rows = np.arange(len(strings))
    while len(rows):
        word = words[begin]
        short = left < 8
        word[short] &= (np.uint64(1) << (8 * left[short]).astype(np.uint64)) - np.uint64(1)
        mixed = (hashes[rows] ^ word) * np.uint64(0x9E3779B97F4A7C15)
        hashes[rows] = mixed ^ (mixed >> np.uint64(29))
        more = left > 8
        rows, begin, left = rows[more], begin[more] + 8, left[more] - 8
    return hashes


def first_of_equals(
    paths: "pyarrow.ChunkedArray",
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    usable: NDArray[np.bool_],
    hash_paths: "Callable[[pyarrow.LargeStringArray], NDArray[np.uint64]]" = hash_strings,
) -> NDArray[np.int64]:
    """For each row the first usable row with its path, start and end; rows that are not usable map to themselves.

    Rows are compared by 64 bits of hash first, and by the paths themselves only where the hashes agree.
    """
    import pyarrow
    import pyarrow.compute

    first = np.arange(len(usable))
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(hash_paths(chunk) for chunk in paths.chunks)])
    for factor, column in ((0x9E3779B97F4A7C15, start), (0xC2B2AE3D27D4EB4F, end)):
        if column.strides != (0,):  # a column that the file does not have is one broadcast value
            same_bits = np.where(np.isnan(column), np.nan, column + 0.0)  # of 0 and -0, and of nan and -nan
            hashes += same_bits.view(np.uint64) * np.uint64(factor)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    equal = hashes[rows[1:]] == hashes[rows[:-1]]
    if not equal.any():
        return first
    # The stable sort keeps the rows of a run of equal hashes in file order: its first row is the one repeated.
    begins = np.concatenate([[True], ~equal])
    leader = rows[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    followers, leaders = rows[~begins], leader[~begins]
    for column in (start, end):
        a, b = column[followers], column[leaders]
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        followers, leaders = followers[same], leaders[same]
    same = pyarrow.compute.equal(paths.take(pyarrow.array(followers)), paths.take(pyarrow.array(leaders))).to_numpy()
    first[followers[same]] = leaders[same]
    return first
