"""Tables of cells as CSV, Parquet or JSON lines: reading, one row as a dict.

For the kinds of CSV that are read see csv_rows.py, for writing table_writer.py.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from opensora.datasets.csv_rows import RowError, csv_rows, require_different
from opensora.datasets.missing_values import is_missing
from opensora.datasets.table_writer import PATHS, TABLES, Cells, is_json, is_parquet, write_rows
from opensora.errors import DataError
from opensora.files import expand_home

_ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True)
class Table:
    """The cells of a file, with the rows that no cells can be made of."""

    path: str
    columns: list[str]
    rows: list[Cells]
    lines: list[int]  # first line of each row: of the CSV (the header is line 1), or row of the Parquet from 1
    errors: dict[int, RowError]  # by row: it is not UTF-8 or has more cells than the header

    def location(self, index: int) -> str:
        """The row's file and line, for messages."""
        return f"{self.path}:{self.lines[index]}"


@dataclass(frozen=True)
class TableStream:
    """The rows of a file one after the other: (line, cells, why it cannot be used or None).

    columns: of the header; of JSON lines, those of the first row.
    """

    path: str
    columns: list[str]
    rows: Iterator[tuple[int, Cells, RowError | None]]


def table_files(path: str) -> list[str]:
    """The files of a table: itself, or all tables in a folder, in the order of their names. Raises DataError for none."""
    if not os.path.isdir(path):
        return [path]
    names = sorted(name for name in os.listdir(path) if _is_shard(name))
    if not names:
        raise DataError(
            f"{path}: found a folder without tables; allowed: files that end in {', '.join(TABLES)}; name another folder"
        )
    return [os.path.join(path, name) for name in names]


def _is_shard(name: str) -> bool:
    """False for what tools write next to a table: hidden files, and the list of bad rows."""
    return name.lower().endswith(TABLES) and not name.startswith(".") and not name.endswith(".errors.jsonl")


def read_table(path: str) -> Table:
    """Read all cells of a CSV, Parquet or JSON lines file. Raises DataError when the file itself cannot be read."""
    stream = stream_table(path)
    columns, rows, lines, errors = dict.fromkeys(stream.columns), list[Cells](), list[int](), dict[int, RowError]()
    for line, cells, error in stream.rows:
        if error is not None:
            errors[len(rows)] = error
        columns |= dict.fromkeys(cells)
        rows.append(cells)
        lines.append(line)
    return Table(path, list(columns), rows, lines, errors)


def stream_table(path: str) -> TableStream:
    """Open a CSV, Parquet or JSON lines file; its rows come one at a time. Raises DataError, as do the rows."""
    with friendly_io_errors(path):
        if is_parquet(path):
            columns, rows = _parquet_rows(path)
        elif is_json(path):
            columns, rows = _json_rows(path)
        else:
            columns, cells = csv_rows(path)
            rows = ((line, dict(zip(columns, each)), error) for line, each, error in cells)
    return TableStream(path, columns, _friendly(path, rows))


def _friendly(
    path: str, rows: Iterator[tuple[int, Cells, RowError | None]]
) -> Iterator[tuple[int, Cells, RowError | None]]:
    with friendly_io_errors(path):
        yield from rows


@contextmanager
def friendly_io_errors(path: str) -> Iterator[None]:
    """Raise DataError for an error of the file system or of Arrow while the file is read."""
    import pyarrow

    try:
        if os.path.isdir(path):
            raise DataError(f"{path}: found a folder; a .csv, .parquet or .jsonl file is needed; name the file")
        yield
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such manifest; a .csv, .parquet or .jsonl file is needed; check the path"
        ) from None
    except OSError as error:
        # Arrow leaves strerror empty and describes the damage in the message, in several lines.
        reason = " ".join(str(error.strerror or error).split())
        raise DataError(f"{path}: cannot be read ({reason}); check that it is whole, and its permissions") from error
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error}); write it again or use .csv") from error


def _parquet_rows(path: str) -> tuple[list[str], Iterator[tuple[int, Cells, RowError | None]]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    require_different(path, file.schema_arrow.names)

    def rows() -> Iterator[tuple[int, Cells, RowError | None]]:
        with file:
            cells = (each for batch in file.iter_batches(_ROWS_AT_A_TIME) for each in batch.to_pylist())
            for line, each in enumerate(cells, start=1):
                yield line, each, None

    return file.schema_arrow.names, rows()


def _json_rows(path: str) -> tuple[list[str], Iterator[tuple[int, Cells, RowError | None]]]:
    file = open(path, encoding="utf-8-sig", errors="surrogateescape")  # noqa: SIM115 (the generator closes it)

    def rows() -> Iterator[tuple[int, Cells, RowError | None]]:
        with file:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                cells, error = _json_cells(text)
                yield line, cells, error

    every = rows()
    begin: list[tuple[int, Cells, RowError | None]] = []
    for row in every:
        begin.append(row)
        if row[2] is None:
            break
    return list(begin[-1][1]) if begin else [], chain(begin, every)


def _json_cells(text: str) -> tuple[Cells, RowError | None]:
    try:
        text.encode()
        cells = json.loads(text)
        if isinstance(cells, dict):
            return cells, None
        sentence = f"the line is a JSON {type(cells).__name__}; an object with a value for each column is needed"
    except UnicodeError:
        sentence = "the line is not UTF-8; write it again as UTF-8"
    except (ValueError, RecursionError) as error:
        sentence = f"the line is not JSON ({error}); correct it"
    return {}, RowError("not a JSON object", sentence)


def require_columns(path: str, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Raise DataError with the file, its columns and those needed when one is missing."""
    missing = [name for name in needed if name not in columns]
    if missing:
        names = ", ".join(map(repr, columns)) or "none (the file is empty)"
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))}; found columns {names}; "
            f"needed: {', '.join(map(repr, needed))}; add a header line or rename the columns"
        )


def readable_rows(table: Table) -> tuple[list[tuple[int, Cells]], list[str]]:
    """For tools: (index, cells) of each readable row, with absolute paths, and a message for each other row."""
    rows: list[tuple[int, Cells]] = []
    messages: list[str] = []
    for index, cells in enumerate(table.rows):
        try:
            rows.append((index, absolute_paths(table.path, cells, table.errors.get(index), "path" in table.columns)))
        except RowError as error:
            messages.append(f"{table.location(index)}: {error}")
    return rows, messages


def absolute_paths(table: str, cells: Cells, error: RowError | None = None, needs_path: bool = True) -> Cells:
    """The cells of a row of this table with absolute paths. Raises RowError, or `error`, for a row that cannot be used.

    needs_path: a row without a path cannot be used.
    """
    if error is not None:
        raise error
    cell = cells.get("path")
    path = "" if is_missing(cell) else str(cell).strip()
    if needs_path and not path:
        word = f"{str(cell).strip()!r}, which programs write for an empty cell" if cell else "empty"
        raise RowError("no path", f"the path is {word}; fill it in or remove the row")
    if "\0" in path:
        raise RowError(
            "null byte in the path", "the path holds a null byte, which no file name does; correct it or remove the row"
        )
    folder = os.path.dirname(os.path.abspath(table))
    paths = {name: expand_home(str(cells[name]).strip()) for name in PATHS if not is_missing(cells.get(name))}
    return cells | {name: os.path.normpath(os.path.join(folder, path)) for name, path in paths.items()}


def write_table(path: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows that are in memory; see write_rows."""
    every = list(rows)
    write_rows(path, lambda: every, columns)
