"""Writing tables: CSV (UTF-8), Parquet or JSON lines by the file's ending, or a folder of Parquet shards.

Rows are read twice, for their columns and types first, so that any number of them fits into memory.
"""

import csv
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora import files
from opensora.errors import DataError

if TYPE_CHECKING:
    import pyarrow

TABLES = (".csv", ".parquet", ".pq", ".jsonl", ".ndjson")  # endings of tables
PATHS = ("path", "source_path")  # columns of file names
ROWS_PER_SHARD = 1_000_000
_ROWS_AT_A_TIME = 10_000
_SHARD, _SHARD_LIMIT = "part-{:05d}.parquet", 100_000

Cells = dict[str, Any]  # one row: column name -> text (CSV) or value (Parquet, JSON); None for an empty cell
Rows = Callable[[], Iterable[Mapping[str, Any]]]  # called once for each pass over the rows


def is_parquet(path: str) -> bool:
    return path.lower().endswith((".parquet", ".pq"))


def is_json(path: str) -> bool:
    return path.lower().endswith((".jsonl", ".ndjson"))


def is_folder_name(path: str) -> bool:
    """True for an output without an ending: a folder of shards."""
    return path.endswith(os.sep) or not os.path.splitext(path)[1]


def table_folder(path: str) -> str:
    """The folder that relative paths in a table belong to: the file's own, or the folder of shards itself."""
    return os.path.abspath(path) if is_folder_name(path) else os.path.dirname(os.path.abspath(path))


def write_rows(
    path: str, rows: Rows, columns: Sequence[str] | None = None, metadata: Mapping[str, str] | None = None
) -> int:
    """Write a table atomically, so that a reader never sees half of it; returns the number of rows.

    columns: their order; by default that of first appearance. metadata: what Parquet files carry in their schema.
    Absolute paths (columns path and source_path) below the table's folder are written relative to it, so that the folder
    can be moved. Raises DataError when the table cannot be written.
    """
    folder = table_folder(path)

    def movable() -> Iterator[Cells]:
        for row in rows():
            yield {**row, **{name: relative_path(str(row[name]), folder) for name in PATHS if row.get(name)}}

    with files.write_errors_as(DataError, path, "choose a writable place with free space"):
        if is_folder_name(path):
            return _write_folder(path, movable, _schema(movable(), columns, metadata or {}))
        counted = _Counted(movable)
        if is_parquet(path):
            schema = _schema(movable(), columns, metadata or {})
            files.atomic_write(path, lambda part: _write_parquet(part, counted, schema))
        elif is_json(path):
            files.atomic_write(path, lambda part: _write_json(part, counted, columns))
        else:
            names = list(columns) if columns is not None else _columns(movable())
            files.atomic_write(path, lambda part: _write_csv(part, counted, names))
    return counted.rows


def relative_path(path: str, folder: str) -> str:
    """An absolute `path` below `folder`, relative to it; any other path as it is."""
    return os.path.relpath(path, folder) if path.startswith(folder.rstrip(os.sep) + os.sep) else path


def batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` rows each, the last one shorter."""
    every = iter(rows)
    while some := list(islice(every, size)):
        yield some


class _Counted:
    """An iterable that counts the rows of its last pass."""

    def __init__(self, rows: Callable[[], Iterable[Cells]]) -> None:
        self._rows = rows
        self.rows = 0

    def __iter__(self) -> Iterator[Cells]:
        self.rows = 0
        for row in self._rows():
            self.rows += 1
            yield row


def _columns(rows: Iterable[Cells]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows:
        if not row.keys() <= names.keys():
            names |= dict.fromkeys(row)
    return list(names)


def _write_csv(path: Path, rows: Iterable[Cells], columns: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        for row in rows:
            cells = ["" if row.get(name) is None else str(row[name]) for name in columns]
            # Without quotes a carriage return would end the row, and a blank behind a comma would be lost.
            odd = any("\r" in cell or cell.startswith(" ") for cell in cells)
            (quoting if odd else writer).writerow(cells)


def _write_json(path: Path, rows: Iterable[Cells], columns: Sequence[str] | None) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            cells = row if columns is None else {name: row[name] for name in columns if name in row}
            file.write(json.dumps(cells, ensure_ascii=False, default=str) + "\n")


def _write_parquet(path: Path, rows: Iterable[Cells], schema: "pyarrow.Schema") -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for some in batches(rows, _ROWS_AT_A_TIME):
            writer.write_table(pyarrow.table({field.name: _array(some, field) for field in schema}, schema=schema))


def _array(rows: Sequence[Cells], field: "pyarrow.Field") -> "pyarrow.Array":
    import pyarrow

    cells = [row.get(field.name) for row in rows]
    if pyarrow.types.is_string(field.type):
        cells = [cell if cell is None or isinstance(cell, str) else str(cell) for cell in cells]
    return pyarrow.array(cells, field.type)


def _schema(rows: Iterable[Cells], columns: Sequence[str] | None, metadata: Mapping[str, str]) -> "pyarrow.Schema":
    """A type for each column that all its cells have; text where they differ, and where there is none."""
    import pyarrow

    types: dict[str, Any] = dict.fromkeys(columns or (), pyarrow.null())
    for some in batches(rows, _ROWS_AT_A_TIME):
        if columns is None:
            types |= dict.fromkeys((name for name in _columns(some) if name not in types), pyarrow.null())
        for name in types:
            types[name] = common_type(types[name], _type_of([row.get(name) for row in some]))
    kinds = [pyarrow.string() if pyarrow.types.is_null(kind) else kind for kind in types.values()]
    return pyarrow.schema(list(zip(types, kinds)), metadata=dict(metadata) or None)


def _type_of(cells: list[Any]) -> "pyarrow.DataType":
    import pyarrow

    try:
        return pyarrow.array(cells).type
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.string()


def common_type(one: "pyarrow.DataType", other: "pyarrow.DataType") -> "pyarrow.DataType":
    """The type that cells of both types fit in: text where there is no other."""
    import pyarrow

    try:
        fields = [pyarrow.schema([("", kind)]) for kind in (one, other)]
        both: pyarrow.DataType = pyarrow.unify_schemas(fields, promote_options="permissive").field(0).type
        return both
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.string()


def _write_folder(path: str, rows: Callable[[], Iterable[Cells]], schema: "pyarrow.Schema") -> int:
    """Shards in a new folder, which then takes the place of an old folder of shards."""
    target = Path(os.path.abspath(path))
    foreign = [name for name in sorted(os.listdir(target)) if not _is_shard(name)] if target.is_dir() else []
    if foreign:
        raise DataError(
            f"{path}: is a folder that holds {foreign[0]}; a folder of shards is written to a new place; choose another name, "
            "or a name that ends in .csv, .parquet or .jsonl"
        )
    count = 0
    part = target.with_name(f".{target.name[:64]}.{uuid.uuid4().hex}.part")
    part.mkdir(parents=True)
    try:
        every = iter(rows())
        for number in range(_SHARD_LIMIT):
            counted = _Counted(lambda: islice(every, ROWS_PER_SHARD))
            _write_parquet(part / _SHARD.format(number), counted, schema)
            count += counted.rows
            if counted.rows < ROWS_PER_SHARD:
                break
        if counted.rows == 0 and number:
            (part / _SHARD.format(number)).unlink()
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return count


def _is_shard(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")
