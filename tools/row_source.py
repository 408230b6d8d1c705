"""RowSource: the rows of all inputs of a tool, in order, once or several times, never all in memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from opensora.datasets.csv_rows import RowError
from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.table import absolute_paths, require_columns, stream_table, table_files
from opensora.datasets.table_writer import TABLES, batches, is_json, is_parquet
from opensora.errors import DataError
from tools.where import ColumnTypes, Where

Row = dict[str, Any]

_ROWS_AT_A_TIME = 1000  # for --where


@dataclass(frozen=True)
class SourceRow:
    """One row of an input."""

    label: str  # "videos.csv:3", for messages
    row: Row  # with absolute paths; empty where it cannot be read
    error: str = ""  # why it cannot be read


class RowSource:
    """Iterate over it for the rows.

    inputs: manifests, folders of their shards, videos, or folders of videos. suffixes: of the files that are listed in
    folders. where: a DuckDB expression; rows for which it is not true are not there. shard: (i, n) keeps every n-th
    row, from the i-th, counted from 1. limit: the number of rows to take, of those that `where` and `shard` leave.
    needs_files: each row of a table names its file in the column path; otherwise all cells are as the table has them.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        suffixes: Sequence[str] = VIDEO_SUFFIXES,
        *,
        where: str | None = None,
        shard: tuple[int, int] | None = None,
        limit: int | None = None,
        needs_files: bool = True,
    ) -> None:
        self._streams = [stream for source in inputs for stream in _streams(source, tuple(suffixes), needs_files)]
        self._shard, self._limit = shard, limit
        self._where: Where | None = None
        if where is not None:
            types = ColumnTypes()
            for rows in batches((each.row for each in self._every() if not each.error), _ROWS_AT_A_TIME):
                types.add(rows)
            self._where = Where(where, types)

    def __iter__(self) -> Iterator[SourceRow]:
        count = 0
        for each in self._kept():
            if self._limit is not None and not each.error:
                if count == self._limit:
                    return
                count += 1
            yield each

    def beyond_limit(self) -> bool:
        """True if --limit leaves readable rows out."""
        if self._limit is None:
            return False
        rows = (each for each in self._kept() if not each.error)
        return any(number == self._limit for number, _ in enumerate(rows))

    def rows(self) -> Iterator[Row]:
        """The readable ones, whatever the limit."""
        return (each.row for each in self._kept() if not each.error)

    def _kept(self) -> Iterator[SourceRow]:
        for number, each in enumerate(self._every() if self._where is None else self._true(self._where)):
            if self._shard is None or number % self._shard[1] == self._shard[0] - 1:
                yield each

    def _true(self, where: Where) -> Iterator[SourceRow]:
        for some in batches(self._every(), _ROWS_AT_A_TIME):
            wanted = iter(where.wanted([each.row for each in some if not each.error]))
            yield from (each for each in some if each.error or next(wanted))

    def _every(self) -> Iterator[SourceRow]:
        for stream in self._streams:
            yield from stream()


def _streams(source: str, suffixes: tuple[str, ...], needs_files: bool) -> list[Callable[[], Iterator[SourceRow]]]:
    """Functions that read an input from its start: one for each of its tables, or one for its files."""
    if os.path.isdir(source):
        files = files_below(source, suffixes)
        if not files and any(name.lower().endswith(TABLES) for name in os.listdir(source)):
            return [_table_stream(shard, needs_files) for shard in table_files(source)]
        if not files:
            kind = "video or picture" if suffixes[-1] in IMAGE_SUFFIXES else "video"
            raise DataError(f"{source}: found no {kind} below this folder; known endings: {', '.join(suffixes)}")
        return [lambda: _file_rows(files)]
    if source.lower().endswith((*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)):
        return [lambda: _file_rows([source])]
    return [_table_stream(source, needs_files)]


def _file_rows(paths: Sequence[str]) -> Iterator[SourceRow]:
    return (SourceRow(path, {"path": os.path.abspath(path)}) for path in paths)


def _table_stream(path: str, needs_files: bool) -> Callable[[], Iterator[SourceRow]]:
    stream = stream_table(path)  # a table that is not there is named before any work
    if needs_files and (stream.columns or not (is_json(path) or is_parquet(path))):
        require_columns(path, stream.columns, ("path",))
    return lambda: _table_rows(path, needs_files)


def _table_rows(path: str, needs_files: bool) -> Iterator[SourceRow]:
    for line, cells, error in stream_table(path).rows:
        try:
            if error is not None:
                raise error
            yield SourceRow(f"{path}:{line}", absolute_paths(path, cells) if needs_files else cells)
        except RowError as fault:
            yield SourceRow(f"{path}:{line}", {}, str(fault))


def files_below(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Paths of the files below a folder with these endings, sorted in each folder; links to folders are not followed."""
    paths: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        names = [name for name in files if name.lower().endswith(suffixes) and not name.startswith(".")]
        paths += [os.path.join(parent, name) for name in sorted(names)]
    return paths
