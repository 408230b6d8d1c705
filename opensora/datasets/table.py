"""Tables of cells as CSV or Parquet files: reading, one row as a dict, and writing.

CSV is written as UTF-8; for the kinds that are read see csv_rows.py.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opensora import files
from opensora.datasets.csv_rows import RowError, csv_rows, require_different
from opensora.datasets.missing_values import is_missing
from opensora.errors import DataError
from opensora.files import expand_home

PATHS = ("path", "source_path")  # columns of file names
Cells = dict[str, Any]  # one row: column name -> text (CSV) or value (Parquet); None for an empty Parquet cell


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


def is_parquet(path: str) -> bool:
    return path.lower().endswith((".parquet", ".pq"))


def read_table(path: str) -> Table:
    """Read all cells of a CSV or Parquet file. Raises DataError when the file itself cannot be read."""
    with friendly_io_errors(path):
        return _read_parquet(path) if is_parquet(path) else _read_csv(path)


@contextmanager
def friendly_io_errors(path: str) -> Iterator[None]:
    """Raise DataError for an error of the file system or of Arrow while the file is read."""
    import pyarrow

    try:
        if os.path.isdir(path):
            raise DataError(f"{path}: found a folder; a manifest is a .csv or .parquet file; name the file")
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest; a .csv or .parquet file is needed; check the path") from None
    except OSError as error:
        reason = error.strerror or error  # Arrow leaves strerror empty and describes the damage in the message
        raise DataError(f"{path}: cannot be read ({reason}); check that it is whole, and its permissions") from error
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error}); write it again or use .csv") from error


def _read_parquet(path: str) -> Table:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        require_different(path, file.schema_arrow.names)
        table = file.read()
    return Table(path, table.column_names, table.to_pylist(), list(range(1, table.num_rows + 1)), {})


def _read_csv(path: str) -> Table:
    header, reader = csv_rows(path)
    rows: list[Cells] = []
    lines: list[int] = []
    errors: dict[int, RowError] = {}
    for line, cells, error in reader:
        if error is not None:
            errors[len(rows)] = error
        rows.append(dict(zip(header, cells)))
        lines.append(line)
    return Table(path, header, rows, lines, errors)


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
    folder = os.path.dirname(os.path.abspath(table.path))
    rows: list[tuple[int, Cells]] = []
    messages: list[str] = []
    for index, cells in enumerate(table.rows):
        error: RowError | str | None = table.errors.get(index)
        cell = cells.get("path")
        path = "" if is_missing(cell) else str(cell).strip()
        if error is None and "path" in table.columns and not path:
            word = f"{str(cell).strip()!r}, which programs write for an empty cell" if cell else "empty"
            error = f"the path is {word}; fill it in or remove the row"
        elif error is None and "\0" in path:
            error = "the path holds a null byte, which no file name does; correct it or remove the row"
        if error is not None:
            messages.append(f"{table.location(index)}: {error}")
        else:
            paths = {name: expand_home(str(cells[name]).strip()) for name in PATHS if not is_missing(cells.get(name))}
            rows.append(
                (index, cells | {name: os.path.normpath(os.path.join(folder, path)) for name, path in paths.items()})
            )
    return rows, messages


def write_table(path: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write CSV or Parquet by the file's ending, atomically, so that a reader never sees half a table.

    columns: their order; by default that of first appearance. Absolute paths (columns path and source_path) below the
    table's folder are written relative to it, so that the folder can be moved. Raises DataError when the file cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    written = [
        {**row, **{name: relative_path(str(row[name]), folder) for name in PATHS if row.get(name)}} for row in rows
    ]
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in written for name in row))
    write = _write_parquet if is_parquet(path) else _write_csv
    with files.write_errors_as(DataError, path, "choose a writable place with free space"):
        files.atomic_write(path, lambda part: write(str(part), written, names))


def relative_path(path: str, folder: str) -> str:
    """An absolute `path` below `folder`, relative to it; any other path as it is."""
    return os.path.relpath(path, folder) if path.startswith(folder.rstrip(os.sep) + os.sep) else path


def _write_csv(path: str, rows: list[Cells], columns: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in rows:
            cells = ["" if row.get(name) is None else str(row[name]) for name in columns]
            # Without quotes a carriage return would end the row, and a blank behind a comma would be lost.
            odd = any("\r" in cell or cell.startswith(" ") for cell in cells)
            (quoting if odd else writer).writerow(cells)


def _write_parquet(path: str, rows: list[Cells], columns: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    arrays = {}
    for name in columns:
        cells = [row.get(name) for row in rows]
        try:
            arrays[name] = pyarrow.array(cells)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # types differ from row to row: write them as text
            arrays[name] = pyarrow.array([None if cell is None else str(cell) for cell in cells])
    pyarrow.parquet.write_table(pyarrow.table(arrays), path)
