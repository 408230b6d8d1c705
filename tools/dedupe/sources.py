"""The tables that are searched for duplicates, read in batches of columns; their rows are numbered through.

Shapes: N rows of all tables.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from opensora.datasets.missing_values import is_missing
from opensora.datasets.table import friendly_io_errors, read_table, readable_rows, require_columns
from opensora.datasets.table_writer import PATHS, is_parquet
from opensora.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 1 << 17
_ENDINGS = (".parquet", ".pq", ".csv", ".jsonl", ".ndjson")


@dataclass
class Source:
    """One table. reference: its rows are kept whatever they are like, and are not written."""

    path: str
    reference: bool = False

    @cached_property
    def columns(self) -> list[str]:
        if is_parquet(self.path):
            return list(self.schema.names)
        return list(dict.fromkeys(name for row in self.rows for name in row)) or self._table.columns

    @cached_property
    def schema(self) -> "pyarrow.Schema":
        """Of a Parquet file."""
        import pyarrow.parquet

        with friendly_io_errors(self.path):
            return pyarrow.parquet.read_schema(self.path)

    @cached_property
    def num_rows(self) -> int:
        import pyarrow.parquet

        if not is_parquet(self.path):
            return len(self.rows)
        with friendly_io_errors(self.path):
            return int(pyarrow.parquet.read_metadata(self.path).num_rows)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All readable rows, with absolute paths."""
        return [row for _, row in readable_rows(self._table)[0]]

    @cached_property
    def messages(self) -> list[str]:
        """Why rows are left out; those of Parquet files are all taken."""
        return [] if is_parquet(self.path) else readable_rows(self._table)[1]

    @cached_property
    def _table(self) -> Any:
        return read_table(self.path)

    def batches(self, columns: Sequence[str] | None = None) -> "Iterator[pyarrow.RecordBatch]":
        """Batches of the columns, or of all; the cells of other kinds of files than Parquet as text."""
        import pyarrow
        import pyarrow.parquet

        if is_parquet(self.path):
            # Read ahead, the columns of all row groups would be in memory.
            with friendly_io_errors(self.path), pyarrow.parquet.ParquetFile(self.path, pre_buffer=False) as file:
                yield from file.iter_batches(_ROWS_AT_ONCE, columns=columns)
            return
        names = self.columns if columns is None else columns
        for begin in range(0, len(self.rows), _ROWS_AT_ONCE):
            some = self.rows[begin : begin + _ROWS_AT_ONCE]
            cells = {name: [_text(row.get(name)) for row in some] for name in names}
            yield pyarrow.record_batch({name: pyarrow.array(each, pyarrow.string()) for name, each in cells.items()})

    def absolute(self, path: str) -> str:
        """A path as it stands in the table, from the root."""
        return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(self.path)), os.path.expanduser(path)))


def _text(cell: Any) -> str | None:
    return None if is_missing(cell) else str(cell)


def open_sources(inputs: Sequence[str], reference: bool = False) -> list[Source]:
    """The tables, in order; a folder stands for those in it. Raises DataError for a table without a column `path`."""
    paths: list[str] = []
    for each in inputs:
        if os.path.isdir(each):
            names = sorted(name for name in os.listdir(each) if name.lower().endswith(_ENDINGS) and name[0] not in "._")
            if not names:
                raise DataError(f"{each}: found no table in this folder; known endings: {', '.join(_ENDINGS)}")
            paths += [os.path.join(each, name) for name in names]
        else:
            paths.append(each)
    sources = [Source(path, reference) for path in paths]
    for source in sources:
        require_columns(source.path, source.columns, PATHS[:1])
    return sources
