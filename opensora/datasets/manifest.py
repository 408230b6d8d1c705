"""Manifests: tables of clips as CSV or Parquet, one row per clip.

Columns (Open-Sora's words): path, text; optional num_frames, height, width (pixels), fps; optional start, end (seconds
from the first frame) when a row is one shot of a longer video. Other columns are kept for tools and ignored by training.
Paths are absolute or relative to the manifest's folder. CSV is UTF-8, with or without a byte order mark.
"""

import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from opensora import files
from opensora.datasets.row_report import Dropped
from opensora.errors import DataError

Cells = dict[str, Any]  # one row: column name -> text (CSV) or value (Parquet); None for an empty Parquet cell

_EXTRA = "\0extra"  # not a name that a header can hold
MOST = 2**31 - 1  # frames or pixels


@dataclass(frozen=True)
class Table:
    """The cells of a file, before any of them is judged."""

    path: str
    columns: list[str]
    rows: list[Cells]
    lines: list[int]  # where each row begins: line of the CSV (the header is line 1), or row of the Parquet from 1

    def place(self, index: int) -> str:
        """How a message names a row."""
        return f"{self.path}:{self.lines[index]}"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One clip that a manifest lists. None: the manifest does not say."""

    index: int  # among all rows of the manifest, from 0
    place: str  # "train.csv:7", for messages
    path: str  # absolute
    text: str
    num_frames: int | None
    fps: float | None
    height: int | None  # pixels
    width: int | None  # pixels
    start: float | None  # seconds from the first frame of the file
    end: float | None  # seconds, exclusive


@dataclass(frozen=True)
class Columns:
    """What rows say in numbers, an array [n] each. 0 and NaN: the manifest does not say."""

    index: NDArray[np.int64]  # among all rows of the manifest, from 0
    num_frames: NDArray[np.int32]
    height: NDArray[np.int32]  # pixels
    width: NDArray[np.int32]  # pixels
    fps: NDArray[np.float64]
    start: NDArray[np.float64]  # seconds
    end: NDArray[np.float64]  # seconds

    def take(self, places: NDArray[np.integer]) -> "Columns":
        return Columns(*(getattr(self, field.name)[places] for field in fields(self)))


class Rows(Sequence[ManifestRow], ABC):
    """Usable rows, by place, and as columns."""

    columns: Columns

    def __len__(self) -> int:
        return len(self.columns.index)

    @abstractmethod
    def take(self, places: NDArray[np.integer]) -> Self:
        """The rows at these places alone."""

    @abstractmethod
    def ending_with(self, suffixes: Sequence[str]) -> NDArray[np.bool_]:
        """For each row whether its path ends so, in letters of any size."""


class ListedRows(Rows):
    """Rows as objects: for manifests that fit a list."""

    def __init__(self, rows: list[ManifestRow]) -> None:
        self._rows = rows

        def column(name: str, kind: type[Any]) -> NDArray[Any]:
            return np.array([getattr(row, name) for row in rows], dtype=kind)  # None becomes NaN

        def whole(name: str) -> NDArray[np.int32]:
            return np.array([min(getattr(row, name) or 0, MOST) for row in rows], dtype=np.int32)

        self.columns = Columns(
            column("index", np.int64),
            whole("num_frames"),
            whole("height"),
            whole("width"),
            column("fps", np.float64),
            column("start", np.float64),
            column("end", np.float64),
        )

    def __getitem__(self, place: Any) -> Any:
        return self._rows[place]

    def take(self, places: NDArray[np.integer]) -> "ListedRows":
        return ListedRows([self._rows[place] for place in places])

    def ending_with(self, suffixes: Sequence[str]) -> NDArray[np.bool_]:
        return np.array([row.path.lower().endswith(tuple(suffixes)) for row in self._rows], dtype=np.bool_)


@dataclass(frozen=True)
class Manifest:
    path: str
    rows: Rows
    dropped: list[Dropped]


def is_parquet(path: str) -> bool:
    return path.lower().endswith((".parquet", ".pq"))


def read_table(path: str) -> Table:
    """All cells of a CSV or Parquet file. DataError when the file itself cannot be read."""
    with readable(path):
        return _read_parquet(path) if is_parquet(path) else _read_csv(path)


@contextmanager
def readable(path: str) -> Iterator[None]:
    """DataError in words for what goes wrong with the file while it is read."""
    try:
        if os.path.isdir(path):
            raise DataError(f"{path}: found a folder; a manifest is a .csv or .parquet file; name the file")
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest; a .csv or .parquet file is needed; check the path") from None
    except OSError as error:
        reason = error.strerror or error  # pyarrow says in its own words what is damaged
        raise DataError(f"{path}: cannot be read ({reason}); check that it is whole, and its permissions") from error


def _read_parquet(path: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with open(path, "rb") as file:
            table = pyarrow.parquet.read_table(file)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error}); write it again or use .csv") from error
    return Table(path, table.column_names, table.to_pylist(), list(range(1, table.num_rows + 1)))


def _read_csv(path: str) -> Table:
    rows: list[Cells] = []
    lines: list[int] = []
    # Bytes that are not UTF-8 become lone surrogates, so that one bad row does not hide the others.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        line = 1
        try:
            header = next(reader, [])
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    # Too many cells: the caption has a comma and no quotes. Judged per row.
                    row: Cells = dict(zip(header, cells))
                    if len(cells) > len(header):
                        row[_EXTRA] = cells[len(header) :]
                    rows.append(row)
                    lines.append(line)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}:{line}: not a CSV row ({error}); quote fields that hold commas or quotes"
            ) from error
    return Table(path, [name.strip() for name in header], _stripped_names(rows, header), lines)


def _stripped_names(rows: list[Cells], header: list[str]) -> list[Cells]:
    if all(name == name.strip() for name in header):
        return rows
    return [{name.strip(): cell for name, cell in row.items()} for row in rows]


def require_columns(table: Table, needed: Sequence[str]) -> None:
    """DataError naming the file, the columns found and those needed."""
    missing = [name for name in needed if name not in table.columns]
    if missing:
        found = ", ".join(repr(name) for name in table.columns) or "none (the file is empty)"
        raise DataError(
            f"{table.path}: no column {', '.join(map(repr, missing))}; found columns {found}; "
            f"needed: {', '.join(map(repr, needed))}; add a header line or rename the columns"
        )


def read_manifest(path: str, captions: bool = True) -> Manifest:
    """Rows fit for training; the others are listed with their line and the reason.

    captions: False makes the text column optional, as for an autoencoder; captions are then empty.
    Parquet is read in columns and stays so, millions of rows included.
    """
    if is_parquet(path):
        from opensora.datasets.parquet_rows import read_rows

        return read_rows(path, captions)
    table = read_table(path)
    require_columns(table, ("path", "text") if captions else ("path",))
    folder = os.path.dirname(os.path.abspath(path))
    rows: list[ManifestRow] = []
    dropped: list[Dropped] = []
    seen: dict[tuple[str, float | None, float | None], int] = {}
    for index, cells in enumerate(table.rows):
        line, place = table.lines[index], table.place(index)
        try:
            row = judge(cells, index, place, folder, captions)
            first = seen.setdefault((row.path, row.start, row.end), line)
            if first != line:
                raise repeated(first)
        except RowError as refused:
            dropped.append(Dropped(refused.reason, f"{place}: {refused}"))
        else:
            rows.append(row)
    return Manifest(path, ListedRows(rows), dropped)


class RowError(Exception):
    """Why a row is not used; `reason` in a few words that rows share."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def repeated(line: int) -> RowError:
    return RowError("duplicate row", f"repeats the path, start and end of line {line}; remove one of them")


def judge(cells: Cells, index: int, place: str, folder: str, captions: bool) -> ManifestRow:
    """The row that cells make; raises Refused."""
    check_cells(cells)
    path = str(cells.get("path") or "").strip()
    if not path:
        raise RowError("empty path", "the path is empty; every row needs a file; fill it in or remove the row")
    text = str(cells.get("text") or "").strip() if captions else ""
    if captions and not text:
        raise RowError("empty caption", "the caption is empty; every row needs one; fill it in or remove the row")
    start, end = number(cells, "start", low=0.0), number(cells, "end", low=0.0)
    if end is not None and end <= (start or 0.0):
        raise RowError("bad number", f"end is {end:g} and start {start or 0:g}; end must be later, in seconds")
    num_frames, height, width = (number(cells, name, low=1) for name in ("num_frames", "height", "width"))
    return ManifestRow(
        index,
        place,
        os.path.normpath(os.path.join(folder, path)),
        text,
        None if num_frames is None else int(num_frames),
        number(cells, "fps", low=1e-3),
        None if height is None else int(height),
        None if width is None else int(width),
        start,
        end,
    )


def check_cells(cells: Mapping[str, Any]) -> None:
    """Refuse a row that is not UTF-8 or has more cells than the header."""
    if _EXTRA in cells:
        sentence = f"{len(cells[_EXTRA])} more cells than the header; put quotes around text that holds a comma"
        raise RowError("too many cells", sentence)
    for name, cell in cells.items():
        if isinstance(cell, str) and any("\udc80" <= letter <= "\udcff" for letter in cell):
            raise RowError("not UTF-8", f"column {name!r} is not UTF-8; manifests are UTF-8; save the file as UTF-8")


def number(cells: Mapping[str, Any], name: str, low: float) -> float | None:
    """A number of at least `low`, None for an empty cell; raises Refused."""
    cell = cells.get(name)
    if cell is None or cell == "" or cell != cell:  # an empty cell of a numeric column may arrive as NaN
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = -float("inf")
    if value != value:  # "nan", as some programs write an empty cell
        return None
    if not low <= value < float("inf"):
        raise RowError(
            "bad number", f"{name} is {cell!r}; a number of at least {low:g} is allowed; mend it or leave it empty"
        )
    return value


def readable_rows(table: Table) -> tuple[list[tuple[int, Cells]], list[str]]:
    """For tools: (index, cells) of the rows that can be read, with absolute paths, and a message for each other row."""
    folder = os.path.dirname(os.path.abspath(table.path))
    kept: list[tuple[int, Cells]] = []
    messages: list[str] = []
    for index, cells in enumerate(table.rows):
        try:
            check_cells(cells)
            path = str(cells.get("path") or "").strip()
            if "path" in table.columns and not path:
                raise RowError("empty path", "the path is empty; fill it in or remove the row")
            kept.append((index, {**cells, "path": os.path.normpath(os.path.join(folder, path))} if path else cells))
        except RowError as refused:
            messages.append(f"{table.place(index)}: {refused}")
    return kept, messages


def write_table(path: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write CSV or Parquet by the file's ending, atomically, so that a reader never sees half a table.

    columns: their order; by default that of first appearance. Absolute paths below the table's folder are written
    relative to it, so that the folder can be moved. DataError when the place cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    found = [{**row, "path": portable(str(row["path"]), folder)} if row.get("path") else dict(row) for row in rows]
    names = list(columns) if columns is not None else list(dict.fromkeys(name for row in found for name in row))
    write = _write_parquet if is_parquet(path) else _write_csv
    with files.write_errors_as(DataError, path, "choose a writable place with free space"):
        files.atomic_write(path, lambda part: write(str(part), found, names))


def portable(path: str, folder: str) -> str:
    """An absolute `path` below `folder`, relative to it; any other path as it is."""
    return os.path.relpath(path, folder) if path.startswith(folder.rstrip(os.sep) + os.sep) else path


def _write_csv(path: str, rows: list[Cells], columns: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: str, rows: list[Cells], columns: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    arrays = {}
    for name in columns:
        cells = [row.get(name) for row in rows]
        try:
            arrays[name] = pyarrow.array(cells)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # kinds differ from row to row: keep them as text
            arrays[name] = pyarrow.array([None if cell is None else str(cell) for cell in cells])
    pyarrow.parquet.write_table(pyarrow.table(arrays), path)
