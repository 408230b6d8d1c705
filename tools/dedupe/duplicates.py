"""Duplicates: which rows of all tables show the same, and which one of them is the best.

Shapes: N rows of all tables, F frames of each clip, D numbers of a vector, G rows that have duplicates.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opensora.errors import DataError
from tools.dedupe.groups import Groups, Rows
from tools.dedupe.hash_columns import parse_hashes, parse_numbers, parse_vectors
from tools.dedupe.near import equal_to_next, unite_near
from tools.dedupe.semantic import unite_similar
from tools.dedupe.sources import Source

if TYPE_CHECKING:
    import pyarrow

KINDS = ("exact", "near", "semantic")
FRAME_HASH, PERCEPTUAL_HASH = "frame_hash", "perceptual_hash"
_BYTES_IN_MEMORY = 1 << 30  # of vectors; more lie in a temporary file, in half precision


@dataclass(frozen=True)
class Settings:
    """by: kinds to look for; empty = those that have a column. quality: None = the column `quality` where there is one."""

    by: tuple[str, ...] = ()
    distance: float = 10.0  # bits of 64
    similarity: float = 0.96  # cosine
    vectors: str = "embedding"
    quality: str | None = None


@dataclass(frozen=True)
class Duplicates:
    """The rows that have duplicates, ascending: [G] each."""

    rows: Rows
    kept: Rows  # the row that is kept; a row's own number where it is kept itself
    ranks: Rows  # 1 = the best of its group
    kinds: NDArray[np.int8]  # index into KINDS; -1 for a row that is kept
    paths: dict[int, str]  # of the rows that are kept, from the root

    def count_kinds(self, sources: Sequence[Source]) -> dict[str, int]:
        """Kind -> rows that are not kept; those of references do not count."""
        first = sum(source.num_rows for source in sources if source.reference)
        counts = np.bincount(self.kinds[(self.rows >= first) & (self.kinds >= 0)], minlength=len(KINDS))
        return dict(zip(KINDS, counts.tolist()))


def find_duplicates(sources: Sequence[Source], settings: Settings) -> Duplicates:
    """Search all tables together. Raises DataError for a table without the columns, or with other cells than hashes."""
    columns = {"exact": FRAME_HASH, "near": PERCEPTUAL_HASH, "semantic": settings.vectors}
    kinds = settings.by or [kind for kind in KINDS if any(columns[kind] in source.columns for source in sources)]
    for source in sources:
        missing = [columns[kind] for kind in kinds if columns[kind] not in source.columns]
        if missing or not kinds:
            raise DataError(
                f"{source.path}: no column {', '.join(missing or columns.values())}; it is needed to find duplicates; run "
                "tools.dedupe.fingerprint (frame_hash, perceptual_hash) or tools.dedupe.embed (embedding) first"
            )
    groups = Groups(sum(source.num_rows for source in sources))
    roots: dict[str, NDArray[Any]] = {}
    for kind in KINDS:
        if kind in kinds:
            _unite(kind, sources, settings, groups)
        roots[kind] = groups.roots.copy()
    return _ranked(sources, settings, groups, roots)


def _unite(kind: str, sources: Sequence[Source], settings: Settings, groups: Groups) -> None:
    if kind == "exact":
        unite_equal(read_column(sources, FRAME_HASH, parse_hashes), groups)
    elif kind == "near":
        unite_near(read_column(sources, PERCEPTUAL_HASH, parse_hashes), groups, settings.distance)
    else:
        with tempfile.TemporaryDirectory(prefix="vectors-") as folder:
            file = os.path.join(folder, "vectors")
            unite_similar(read_column(sources, settings.vectors, parse_vectors, file), groups, settings.similarity)


def unite_equal(hashes: NDArray[np.uint64], groups: Groups) -> None:
    """Unite rows of equal hashes, [N, numbers]; zeros stand for none."""
    rows = np.flatnonzero(hashes.any(axis=1))
    rows = rows[np.lexsort(hashes[rows].T)] if len(rows) else rows
    equal = equal_to_next(hashes, rows)
    groups.unite(rows[:-1][equal], rows[1:][equal])


def read_column(
    sources: Sequence[Source],
    name: str,
    parse: Callable[["pyarrow.Array", str], NDArray[Any]],
    file: str | None = None,
) -> NDArray[Any]:
    """[N, ...]: the column of all tables; what is large lies in `file`."""
    column: NDArray[Any] | None = None
    begin = missing = 0
    count = sum(source.num_rows for source in sources)
    for source, batch in _batches(sources, [name]):
        part = parse(batch.column(0), f"{source.path}: {name}")
        if column is None and (part.ndim == 1 or part.shape[1]):
            column = _empty((count, *part.shape[1:]), part.dtype, file)
        if part.ndim == 2 and not part.shape[1]:
            missing += len(part)
        elif column is not None and part.shape[1:] != column.shape[1:]:
            raise DataError(
                f"{source.path}: {name}: a row has {part.shape[1]} numbers, rows before it have {column.shape[1]}; all must be "
                "made in one way, with equal --frames or one --model; make them again"
            )
        elif column is not None:
            column[begin : begin + len(part)] = part
        begin += len(part)
    return np.zeros((count, 1), np.uint64) if column is None else column


def _empty(shape: tuple[int, ...], dtype: "np.dtype[Any]", file: str | None) -> NDArray[Any]:
    if file is None or np.prod(shape) * dtype.itemsize <= _BYTES_IN_MEMORY:
        return np.zeros(shape, dtype)
    return np.memmap(file, np.float16, "w+", shape=shape)


def _batches(sources: Sequence[Source], columns: list[str]) -> "Iterator[tuple[Source, pyarrow.RecordBatch]]":
    for source in sources:
        for batch in source.batches(columns):
            yield source, batch


def _ranked(
    sources: Sequence[Source], settings: Settings, groups: Groups, roots: dict[str, NDArray[Any]]
) -> Duplicates:
    """The groups' rows in order of quality; equal ones by path, so that the order of rows has no influence."""
    sizes = np.bincount(groups.roots, minlength=len(groups.roots))
    rows = np.flatnonzero(sizes[groups.roots] > 1)
    del sizes
    paths = _paths(sources, rows)
    by_path = {path: place for place, path in enumerate(sorted(set(paths)))}
    place = np.array([by_path[path] for path in paths], np.int64)
    keys = [place, *(-key[rows] for key in reversed(_qualities(sources, settings)))]
    order = np.lexsort([_column(sources, "start_frame")[rows], *keys, groups.roots[rows]])
    ordered = rows[order]
    first = np.concatenate([[True], groups.roots[ordered][1:] != groups.roots[ordered][:-1]])[: len(rows)]
    starts = np.flatnonzero(first)
    lengths = np.diff([*starts, len(rows)])
    kept, ranks = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    kept[order] = np.repeat(ordered[starts], lengths)
    ranks[order] = np.arange(len(rows)) - np.repeat(starts, lengths) + 1
    kinds = np.full(len(rows), len(KINDS) - 1, np.int8)
    for number, kind in reversed(list(enumerate(KINDS))):
        kinds[roots[kind][rows] == roots[kind][kept]] = number
    kinds[rows == kept] = -1
    return Duplicates(
        rows, kept, ranks, kinds, {row: paths[at] for at, row in enumerate(rows.tolist()) if kinds[at] < 0}
    )


def _paths(sources: Sequence[Source], rows: Rows) -> list[str]:
    """Of the rows, ascending, from the root."""
    paths: list[str] = []
    begin = 0
    for source, batch in _batches(sources, ["path"]):
        inside = rows[np.searchsorted(rows, begin) : np.searchsorted(rows, begin + len(batch))] - begin
        paths += [source.absolute(str(path or "")) for path in batch.column(0).take(_arrow(inside)).to_pylist()]
        begin += len(batch)
    return paths


def _arrow(numbers: Rows) -> "pyarrow.Array":
    import pyarrow

    return pyarrow.array(numbers)


def _qualities(sources: Sequence[Source], settings: Settings) -> list[NDArray[np.float64]]:
    """Keys [N] by which the best row is chosen, in order; more is better, and -infinity stands for an empty cell."""
    name = settings.quality or "quality"
    if settings.quality and not any(name in source.columns for source in sources):
        raise DataError(f"{sources[-1].path}: no column {name!r} for --quality; found {', '.join(sources[-1].columns)}")
    reference = np.repeat([float(each.reference) for each in sources], [each.num_rows for each in sources])
    pixels = _column(sources, "height") * _column(sources, "width")
    keys = [reference, _column(sources, name), pixels, _column(sources, "bitrate"), _column(sources, "num_frames")]
    return [np.where(np.isnan(key), -np.inf, key) for key in keys]


def _column(sources: Sequence[Source], name: str) -> NDArray[np.float64]:
    """[N] of numbers; NaN for empty cells and in tables without the column."""
    numbers = np.full(sum(source.num_rows for source in sources), np.nan)
    begin = 0
    for source in sources:
        at = begin
        for batch in source.batches([name]) if name in source.columns else ():
            numbers[at : at + len(batch)] = parse_numbers(batch.column(0), f"{source.path}: {name}")
            at += len(batch)
        begin += source.num_rows
    return numbers
