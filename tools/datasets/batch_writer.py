"""Write Arrow batches as a table, atomically and without keeping them: CSV, Parquet or JSON lines by the ending.

An output without an ending is a folder of Parquet shards, which takes the place of an older one.
"""

import csv
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora import files
from opensora.datasets.table_writer import ROWS_PER_SHARD, TABLES, is_folder_name, is_json, is_parquet
from opensora.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow


def require_output(path: str, flag: str = "OUT") -> None:
    """Raise ConfigError for a name that is neither that of a table nor that of a folder."""
    fault = files.path_fault(path, utf8=True)
    if fault is None and not is_folder_name(path) and not path.lower().endswith(TABLES):
        fault = repr(path)
    if fault is not None:
        raise ConfigError(
            f"{flag} is {fault}; allowed: a name that ends in {', '.join(TABLES)}, or without an ending for a folder of shards"
        )


def write_batches(
    path: str,
    schema: "pyarrow.Schema",
    batches: "Iterable[pyarrow.RecordBatch]",
    *,
    metadata: Mapping[str, str] | None = None,
    shards: Sequence[int] | None = None,
    json_columns: Sequence[str] = (),
    where: str = "",
) -> int:
    """Write a table and return its rows. Raises DataError when it cannot be written.

    where: its name in messages, if that is not `path`. metadata: what Parquet files carry in their schema. shards: rows of
    each file of a folder, in order. json_columns: whose text is JSON, which JSON lines hold as it is.
    """
    schema = schema.with_metadata(dict(metadata) if metadata else None)
    counted = _Counted(batches)
    with files.write_errors_as(DataError, where or path, "choose a writable place with free space"):
        if is_folder_name(path):
            _write_folder(Path(os.path.abspath(path)), schema, counted, shards)
        elif is_parquet(path):
            files.atomic_write(path, lambda part: _write_parquet(part, schema, counted))
        elif is_json(path):
            files.atomic_write(path, lambda part: _write_json(part, schema, counted, json_columns))
        else:
            files.atomic_write(path, lambda part: _write_csv(part, schema, counted))
    return counted.rows


class _Counted:
    def __init__(self, batches: "Iterable[pyarrow.RecordBatch]") -> None:
        self._batches, self.rows = batches, 0

    def __iter__(self) -> "Iterator[pyarrow.RecordBatch]":
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


def _write_parquet(path: Path, schema: "pyarrow.Schema", batches: "Iterable[pyarrow.RecordBatch]") -> None:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch.cast(schema) if batch.schema != schema else batch)


def _write_csv(path: Path, schema: "pyarrow.Schema", batches: "Iterable[pyarrow.RecordBatch]") -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(schema.names)
        for batch in batches:
            for row in zip(*(column.to_pylist() for column in batch.columns)):
                cells = ["" if cell is None else str(cell) for cell in row]
                # Without quotes a carriage return would end the row, and a blank behind a comma would be lost.
                odd = any("\r" in cell or cell.startswith(" ") for cell in cells)
                (quoting if odd else writer).writerow(cells)


def _write_json(
    path: Path, schema: "pyarrow.Schema", batches: "Iterable[pyarrow.RecordBatch]", json_columns: Sequence[str]
) -> None:
    nested = [name in json_columns for name in schema.names]
    with open(path, "w", encoding="utf-8") as file:
        for batch in batches:
            for row in zip(*(column.to_pylist() for column in batch.columns)):
                cells: dict[str, Any] = {
                    name: json.loads(cell) if is_nested and cell is not None else cell
                    for name, cell, is_nested in zip(schema.names, row, nested)
                }
                file.write(json.dumps(cells, ensure_ascii=False, default=str) + "\n")


def _write_folder(
    target: Path, schema: "pyarrow.Schema", batches: "Iterable[pyarrow.RecordBatch]", shards: Sequence[int] | None
) -> None:
    """Shards in a new folder, which then takes the place of an old folder of shards."""

    def fill(part: Path) -> None:
        part.mkdir()
        for number, some in enumerate(_cut(batches, shards)):
            _write_parquet(part / f"part-{number:05d}.parquet", schema, some)
        for file in (*sorted(part.iterdir()), part):
            files.flush(file)

    _replace_folder(target, fill)


def move_table(written: str, target: str) -> None:
    """Let a whole table at `written` take the place of `target`, which may be on another file system."""
    if is_folder_name(target):
        _replace_folder(Path(os.path.abspath(target)), lambda part: shutil.move(written, part))
    else:
        files.atomic_write(target, lambda part: shutil.move(written, part))


def _replace_folder(target: Path, fill: Callable[[Path], object]) -> None:
    foreign = [name for name in sorted(os.listdir(target)) if not _is_shard(name)] if target.is_dir() else []
    if foreign:
        raise DataError(
            f"{target}: is a folder that holds {foreign[0]}; a folder of shards is written to a new place; choose another "
            "name, or a name that ends in .csv, .parquet or .jsonl"
        )
    part = target.with_name(f".{target.name[:64]}.{uuid.uuid4().hex}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        fill(part)
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _is_shard(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def _cut(
    batches: "Iterable[pyarrow.RecordBatch]", shards: Sequence[int] | None
) -> "Iterator[Iterator[pyarrow.RecordBatch]]":
    """Runs of batches with the rows of one shard each, to be read one after the other."""
    every = iter(batches)
    rest: list[pyarrow.RecordBatch] = []  # behind the end of a shard

    def shard(rows: int) -> "Iterator[pyarrow.RecordBatch]":
        while rows and (batch := rest.pop() if rest else next(every, None)) is not None:
            if batch.num_rows > rows:
                rest.append(batch.slice(rows))
                batch = batch.slice(0, rows)
            rows -= batch.num_rows
            yield batch

    if shards is not None:
        yield from map(shard, shards)
        return
    begin = True
    while True:
        if not rest and (batch := next((each for each in every if each.num_rows), None)) is not None:
            rest.append(batch)
        if not rest and not begin:
            return
        begin = False  # no row at all makes one empty shard
        yield shard(ROWS_PER_SHARD)
