"""Manifests of millions of rows: Parquet, read block by block and kept in columns.

A row becomes an object when it is asked for. Judging costs no Python per row: only rows that are refused are looked at one
by one, and of those the first `TOLD` of each reason.
"""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.manifest import (
    MOST,
    Columns,
    Manifest,
    ManifestRow,
    RowError,
    Rows,
    judge,
    number,
    readable,
    repeated,
)
from opensora.datasets.row_report import Dropped
from opensora.errors import DataError

if TYPE_CHECKING:
    import pyarrow

Flags = NDArray[np.bool_]
TEXTS = ("path", "text")
LOWEST = {"num_frames": 1.0, "height": 1.0, "width": 1.0, "fps": 1e-3, "start": 0.0, "end": 0.0}
TOLD = 100  # refused rows of each reason that get a message of their own
_BLOCK_ROWS = 1 << 17


class ParquetRows(Rows):
    """Rows whose paths and captions stay in Arrow's memory; see `Rows`."""

    def __init__(self, path: str, texts: "dict[str, pyarrow.ChunkedArray]", columns: Columns) -> None:
        self.path = path
        self.folder = os.path.dirname(os.path.abspath(path))
        self.columns = columns
        self._texts = texts

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        columns, index = self.columns, int(self.columns.index[place])
        return ManifestRow(
            index,
            f"{self.path}:{index + 1}",
            os.path.normpath(os.path.join(self.folder, self._text("path", index))),
            self._text("text", index),
            int(columns.num_frames[place]) or None,
            _said(columns.fps[place]),
            int(columns.height[place]) or None,
            int(columns.width[place]) or None,
            _said(columns.start[place]),
            _said(columns.end[place]),
        )

    def take(self, places: NDArray[np.integer]) -> "ParquetRows":
        return ParquetRows(self.path, self._texts, self.columns.take(places))

    def ending_with(self, suffixes: Sequence[str]) -> Flags:
        import pyarrow.compute

        paths, found = self._texts["path"], np.zeros(len(self._texts["path"]), dtype=np.bool_)
        for suffix in suffixes:
            found |= pyarrow.compute.ends_with(paths, pattern=suffix, ignore_case=True).to_numpy()
        return found[self.columns.index]

    def _text(self, name: str, index: int) -> str:
        return self._texts[name][index].as_py() if name in self._texts else ""


def _said(value: np.floating[Any]) -> float | None:
    return None if np.isnan(value) else float(value)


def read_rows(path: str, captions: bool) -> Manifest:
    """`read_manifest` for Parquet."""
    import pyarrow

    with readable(path):
        try:
            blocks = list(_blocks(path, captions))
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"{path}: not a Parquet file ({error}); write it again or use .csv") from error
    texts = {
        name: pyarrow.chunked_array([block.texts[name] for block in blocks], type=pyarrow.large_string())
        for name in (TEXTS if captions else TEXTS[:1])
    }
    refused = np.concatenate([np.zeros(0, dtype=np.int8), *(block.refused for block in blocks)])
    numbers = {
        name: np.concatenate([block.numbers[name] for block in blocks])
        if blocks and name in blocks[0].numbers
        else _unsaid(name, len(refused))
        for name in LOWEST
    }
    first = _first_of_equals(texts["path"], numbers["start"], numbers["end"], refused == 0)
    again = first != np.arange(len(refused))
    dropped = _told(again, lambda index: str(_repeats(path, index, int(first[index]))), "duplicate row")
    for block in blocks:
        dropped += block.dropped
    rows = ParquetRows(path, texts, Columns(np.arange(len(refused)), **numbers))
    kept = (refused == 0) & ~again
    return Manifest(path, rows if kept.all() else rows.take(np.flatnonzero(kept)), _capped(dropped))


def _repeats(path: str, index: int, first: int) -> str:
    return f"{path}:{index + 1}: {repeated(first + 1)}"


class _Block:
    """Some rows that follow each other: what training needs of them, and which are refused, by number of the reason."""

    def __init__(self, path: str, table: "pyarrow.Table", first: int, captions: bool) -> None:
        import pyarrow
        import pyarrow.compute

        self.texts = {}
        for name in TEXTS if captions else TEXTS[:1]:
            text = _as_text(path, name, table.column(name)).combine_chunks()
            self.texts[name] = pyarrow.compute.fill_null(pyarrow.compute.utf8_trim_whitespace(text), "")
        self.numbers: dict[str, Any] = {}
        bad = np.zeros(table.num_rows, dtype=np.bool_)
        for name, lowest in LOWEST.items():
            if name in table.column_names:
                value, wrong = _numbers(table.column(name), name, lowest)
                bad |= wrong
                self.numbers[name] = value
        if "end" in self.numbers:
            bad |= self.numbers["end"] <= np.nan_to_num(self.numbers.get("start", np.zeros(table.num_rows)))
        for name in ("num_frames", "height", "width"):
            if name in self.numbers:
                self.numbers[name] = np.clip(np.nan_to_num(self.numbers[name]), 0, MOST).astype(np.int32)
        self.refused = bad.astype(np.int8) * 3
        for code, name in ((2, "text"), (1, "path")):
            if name in self.texts:
                self.refused[_empty(self.texts[name])] = code
        folder = os.path.dirname(os.path.abspath(path))

        def message(index: int) -> str:
            place = f"{path}:{first + index + 1}"
            cells = {name: table.column(name)[index].as_py() for name in table.column_names}
            try:
                judge(cells, first + index, place, folder, captions)
            except RowError as refused:
                return f"{place}: {refused}"
            raise AssertionError(f"{place}: refused in columns, fine as a row")

        self.dropped: list[Dropped] = []
        for code, reason in ((1, "empty path"), (2, "empty caption"), (3, "bad number")):
            self.dropped += _told(self.refused == code, message, reason)


def _blocks(path: str, captions: bool) -> Iterator[_Block]:
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        have = file.schema_arrow.names
        missing = [name for name in (TEXTS if captions else TEXTS[:1]) if name not in have]
        if missing:
            needed = ", ".join(map(repr, TEXTS if captions else TEXTS[:1]))
            raise DataError(
                f"{path}: no column {', '.join(map(repr, missing))}; found columns {', '.join(map(repr, have))}; "
                f"needed: {needed}; add a header line or rename the columns"
            )
        wanted = [name for name in (*TEXTS, *LOWEST) if name in have and (captions or name != "text")]
        first = 0
        for batch in file.iter_batches(_BLOCK_ROWS, columns=wanted):
            yield _Block(path, pyarrow.Table.from_batches([batch]), first, captions)
            first += batch.num_rows


def _as_text(path: str, name: str, column: "pyarrow.ChunkedArray") -> "pyarrow.ChunkedArray":
    import pyarrow
    import pyarrow.compute

    try:
        return pyarrow.compute.cast(column, pyarrow.large_string())
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise DataError(
            f"{path}: column {name!r} holds {column.type}, which is no text ({error}); strings are needed; write it again"
        ) from error


def _numbers(column: "pyarrow.ChunkedArray", name: str, lowest: float) -> tuple[NDArray[np.float64], Flags]:
    """(values, NaN where nothing is said; which cells hold something else than a number of at least `lowest`)."""
    import pyarrow
    import pyarrow.compute

    kind = column.type
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_null(kind):
        value = pyarrow.compute.cast(column, pyarrow.float64(), safe=False).to_numpy()
        value = np.array(value, dtype=np.float64)
        return value, (value < lowest) | (value == np.inf)
    value, wrong = np.full(len(column), np.nan), np.zeros(len(column), dtype=np.bool_)
    for index, cell in enumerate(column.to_pylist()):  # numbers written as text are rare
        try:
            found = number({name: cell}, name, lowest)
        except RowError:
            wrong[index] = True
        else:
            value[index] = np.nan if found is None else found
    return value, wrong


def _unsaid(name: str, rows: int) -> NDArray[Any]:
    """A column that the file does not have; it takes no memory."""
    whole = name in ("num_frames", "height", "width")
    return np.broadcast_to(np.array(0, dtype=np.int32) if whole else np.array(np.nan), rows)


def _empty(text: "pyarrow.LargeStringArray") -> Flags:
    import pyarrow.compute

    return pyarrow.compute.equal(text, "").to_numpy(zero_copy_only=False)


def _told(which: Flags, message: Any, reason: str) -> list[Dropped]:
    rows = np.flatnonzero(which)
    told = [Dropped(reason, message(int(index))) for index in rows[:TOLD]]
    if len(rows) > TOLD:
        told[-1] = Dropped(reason, told[-1].message, more=len(rows) - TOLD)
    return told


def _capped(dropped: list[Dropped]) -> list[Dropped]:
    """At most TOLD of a reason; the last of them counts the others."""
    kept: dict[str, list[Dropped]] = {}
    for row in dropped:
        rows = kept.setdefault(row.reason, [])
        if len(rows) < TOLD:
            rows.append(row)
        else:
            rows[-1] = Dropped(row.reason, rows[-1].message, rows[-1].more + 1 + row.more)
    return [row for rows in kept.values() for row in rows]


def _first_of_equals(
    paths: "pyarrow.ChunkedArray", start: NDArray[np.float64], end: NDArray[np.float64], usable: Flags
) -> NDArray[np.int64]:
    """For each row the first usable one with its path, start and end; rows that are not usable are left alone.

    Rows are compared by 64 bits of hash first; only where those agree the paths themselves are.
    """
    import pyarrow
    import pyarrow.compute

    first = np.arange(len(usable))
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *(_hashes(chunk) for chunk in paths.chunks)])
    for factor, column in ((0x9E3779B97F4A7C15, start), (0xC2B2AE3D27D4EB4F, end)):
        if column.strides != (0,):
            hashes += (column + 0.0).view(np.uint64) * np.uint64(factor)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    equal = hashes[rows[1:]] == hashes[rows[:-1]]
    if not equal.any():
        return first
    begins = np.concatenate([[True], ~equal])  # of a run of equal hashes
    leader = rows[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    followers, leaders = rows[~begins], leader[~begins]
    for column in (start, end):
        a, b = column[followers], column[leaders]
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        followers, leaders = followers[same], leaders[same]
    same = pyarrow.compute.equal(paths.take(pyarrow.array(followers)), paths.take(pyarrow.array(leaders)))
    same = same.to_numpy()
    first[followers[same]] = leaders[same]
    return first


def _hashes(paths: "pyarrow.LargeStringArray") -> NDArray[np.uint64]:
    """A polynomial over a path's words of 8 bytes."""
    _, offsets_buffer, data = paths.buffers()
    found = np.zeros(len(paths), dtype=np.uint64)
    if not len(paths) or data is None:
        return found
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[paths.offset : paths.offset + len(paths) + 1]
    raw = bytes(data[int(offsets[0]) : int(offsets[-1])]) + bytes(8)  # a last word may reach beyond the end
    words = np.ndarray(len(raw) - 7, dtype="<u8", buffer=raw, strides=(1,))  # one begins at every byte
    begin, left = offsets[:-1] - offsets[0], np.diff(offsets)
    rows = np.arange(len(paths))
    while len(rows):
        word = words[begin]
        short = left < 8
        word[short] &= (np.uint64(1) << (8 * left[short]).astype(np.uint64)) - np.uint64(1)
        mixed = (found[rows] ^ word) * np.uint64(0x9E3779B97F4A7C15)
        found[rows] = mixed ^ (mixed >> np.uint64(29))
        more = left > 8
        rows, begin, left = rows[more], begin[more] + 8, left[more] - 8
    return found
