"""Cells without a value: empty ones, invisible ones, and words that programs write for an empty cell."""

import re
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

Mask = NDArray[np.bool_]

# The words that pandas reads as an empty cell.
WORDS = (
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
# Blanks, and characters that show nothing: controls, joiners, marks of direction and byte order, fillers.
_INVISIBLE = (
    r"\x00-\x20\x7f-\xa0\xad"
    "\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
)  # a class of characters for `re` and for Arrow's RE2
_BLANK = re.compile(f"[{_INVISIBLE}]*")


def is_blank(text: str) -> bool:
    """True if nothing of the text can be seen."""
    return _BLANK.fullmatch(text) is not None


def is_missing(cell: object) -> bool:
    """True for None, NaN, and text that is blank or one of `WORDS`."""
    if cell is None or cell != cell:
        return True
    return isinstance(cell, str) and (cell.strip() in WORDS or is_blank(cell))


def blank_mask(texts: "pyarrow.LargeStringArray") -> Mask:
    """`is_blank` of each string; no string may be null or begin or end with a blank."""
    import pyarrow
    import pyarrow.compute as compute

    lengths, first_bytes = _lengths_and_first_bytes(texts)
    blank = lengths == 0
    # A character that cannot be seen is a control or not ASCII: other strings are not looked at one by one.
    odd = np.flatnonzero(~blank & ((first_bytes < 0x21) | (first_bytes > 0x7E)))
    if len(odd):
        shown = compute.match_substring_regex(texts.take(pyarrow.array(odd)), f"[^{_INVISIBLE}]")
        blank[odd] = ~shown.to_numpy(zero_copy_only=False)
    return blank


def word_mask(texts: "pyarrow.LargeStringArray") -> Mask:
    """True for each string that is one of `WORDS`."""
    import pyarrow
    import pyarrow.compute as compute

    words = np.zeros(len(texts), dtype=np.bool_)
    short = np.flatnonzero(_lengths_and_first_bytes(texts)[0] <= max(map(len, WORDS)))
    if len(short):
        values = pyarrow.array(WORDS, pyarrow.large_string())
        words[short] = compute.is_in(texts.take(pyarrow.array(short)), values).to_numpy(zero_copy_only=False)
    return words


def _lengths_and_first_bytes(texts: "pyarrow.LargeStringArray") -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Bytes of each string, and the first byte of each; 0 for an empty one."""
    _, offsets_buffer, data_buffer = texts.buffers()
    if not len(texts):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(offsets)
    first_bytes = np.zeros(len(texts), dtype=np.uint8)
    if data_buffer is not None:
        some = lengths > 0
        first_bytes[some] = np.frombuffer(data_buffer, dtype=np.uint8)[offsets[:-1][some]]
    return lengths, first_bytes
