"""Columns of hashes, vectors and numbers of a table as arrays. A cell that is empty becomes zeros, or NaN.

Shapes: N rows, D numbers of a vector.
"""

import json
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from opensora.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_DIGITS = 16  # hexadecimal, of one number of 64 bits


def parse_hashes(column: "pyarrow.Array", where: str) -> NDArray[np.uint64]:
    """[N, digits / 16] of a text column of hexadecimal numbers of one length; zeros for empty cells.

    [N, 0] where all cells are empty. where: for the DataError of a cell that is no such number.
    """
    import pyarrow
    import pyarrow.compute as pc

    column = _text(column)
    lengths = pc.binary_length(column).drop_null()
    if not len(lengths):
        return np.zeros((len(column), 0), np.uint64)
    digits = lengths[0].as_py()
    other = pc.binary_length(column).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~np.isnan(other.astype(float)) & (other != digits))
    if digits % _DIGITS or len(wrong):
        cell = column[int(wrong[0]) if len(wrong) else 0].as_py()
        raise DataError(
            f"{where}: {cell!r} is no hash like the others, of {digits} hexadecimal digits; all must be made in one way; "
            "run tools.dedupe.fingerprint on all rows"
        )
    filled = pc.fill_null(column, "0" * digits).cast(pyarrow.binary(digits))
    text = np.frombuffer(filled.buffers()[1], np.uint8)[filled.offset * digits :][: len(column) * digits]
    values = _VALUES[text]
    if (values > 15).any():
        cell = column[int(np.flatnonzero(values > 15)[0]) // digits].as_py()
        raise DataError(f"{where}: {cell!r} is no hexadecimal number; run tools.dedupe.fingerprint on all rows")
    packed = values[0::2] << 4 | values[1::2]
    return packed.view(">u8").astype(np.uint64).reshape(len(column), -1)


_VALUES = np.full(256, 255, np.uint8)
_VALUES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_VALUES[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def parse_numbers(column: "pyarrow.Array", where: str) -> NDArray[np.float64]:
    """[N] of numbers, or of text that holds them; NaN for empty cells."""
    import pyarrow

    try:
        if not (pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)):
            column = _text(column)
        numbers: NDArray[np.float64] = column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{where}: {error}; numbers and empty cells are allowed; correct the column") from error
    return numbers


def parse_vectors(column: "pyarrow.Array", where: str) -> NDArray[np.float32]:
    """[N, D] of lists of numbers, or of text that holds them in brackets; zeros for empty cells."""
    import pyarrow

    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        try:
            column = pyarrow.array([json.loads(cell) if cell else None for cell in column.to_pylist()])
        except (ValueError, pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(f"{where}: a cell is no list of numbers ({error}); run tools.dedupe.embed") from error
    kind = column.type
    if pyarrow.types.is_null(kind):
        return np.zeros((len(column), 0), np.float32)
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)):
        raise DataError(f"{where}: the column is of type {kind}; lists of numbers are needed; run tools.dedupe.embed")
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    values = column.drop_null().flatten().cast(pyarrow.float32()).to_numpy(zero_copy_only=False)
    size = len(values) // max(1, valid.sum())
    lengths = {len(cell) for cell in column.drop_null()} if size * valid.sum() == len(values) else {-1}
    if lengths - {size} or not np.isfinite(values).all():
        raise DataError(
            f"{where}: its vectors are not all of one length and finite; one model makes all of them; run tools.dedupe.embed"
        )
    vectors = np.zeros((len(column), size), np.float32)
    vectors[valid] = values.reshape(-1, size) if size else 0
    return vectors


def _text(column: "pyarrow.Array") -> "pyarrow.Array":
    """The column as text without blanks around it; empty texts become empty cells."""
    import pyarrow
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(column.cast(pyarrow.string()))
    return pc.if_else(pc.equal(text, ""), None, text)
