"""Tables with the columns duplicate_of, duplicate_kind and quality_rank, written in batches."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opensora import files
from opensora.datasets.table_writer import PATHS, is_folder_name, is_parquet, relative_path, write_rows
from opensora.errors import ConfigError, DataError
from tools.dedupe.duplicates import KINDS, Duplicates
from tools.dedupe.sources import Source

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("duplicate_of", "duplicate_kind", "quality_rank")


def write_marked(
    sources: Sequence[Source], duplicates: Duplicates, output: str, drop: bool, metadata: dict[str, str]
) -> int:
    """Write the rows of all tables that are no references to one table, or each table into a folder; returns their number.

    drop: leave out the rows that are duplicates of another. metadata: of the schemas of Parquet files.
    """
    numbered, begin = [], 0
    for source in sources:
        if not source.reference:
            numbered.append((source, begin))
        begin += source.num_rows
    if not is_folder_name(output):
        return _write(numbered, duplicates, output, drop, metadata)
    names = [os.path.basename(source.path) for source, _ in numbered]
    if len(set(names)) < len(names):
        raise ConfigError(f"{output}: several IN have one name, {max(names, key=names.count)}; name one table as OUT")
    return sum(
        _write([each], duplicates, os.path.join(output, name), drop, metadata) for each, name in zip(numbered, names)
    )


def _write(
    numbered: Sequence[tuple[Source, int]], duplicates: Duplicates, output: str, drop: bool, metadata: dict[str, str]
) -> int:
    folder = os.path.dirname(os.path.abspath(output))
    if is_parquet(output) and all(is_parquet(source.path) for source, _ in numbered):
        return _write_parquet(numbered, duplicates, output, folder, drop, metadata)
    rows: list[dict[str, Any]] = []
    for source, begin in numbered:
        every = source.rows if not is_parquet(source.path) else _absolute_rows(source)
        marks = _marks(duplicates, begin, len(every), folder)
        for row, *cells in zip(every, *marks):
            if not drop or cells[0] is None:
                rows.append({**row, **dict(zip(COLUMNS, cells))})
    names = dict.fromkeys([*(name for source, _ in numbered for name in source.columns), *COLUMNS])
    return write_rows(output, lambda: rows, list(names), metadata)


def _absolute_rows(source: Source) -> list[dict[str, Any]]:
    rows = [row for batch in source.batches() for row in batch.to_pylist()]
    return [{**row, **{name: source.absolute(row[name]) for name in PATHS if row.get(name)}} for row in rows]


def _write_parquet(
    numbered: Sequence[tuple[Source, int]],
    duplicates: Duplicates,
    output: str,
    folder: str,
    drop: bool,
    metadata: dict[str, str],
) -> int:
    import pyarrow
    import pyarrow.compute as pc
    import pyarrow.parquet

    try:
        schema = pyarrow.unify_schemas([source.schema for source, _ in numbered], promote_options="permissive")
    except pyarrow.ArrowTypeError as error:
        raise DataError(
            f"{output}: the tables have columns of different types ({error}); convert them first"
        ) from error
    kinds = (pyarrow.string(), pyarrow.string(), pyarrow.int64())
    fields = [field for field in schema if field.name not in COLUMNS]
    schema = pyarrow.schema([*fields, *zip(COLUMNS, kinds)], metadata={**(schema.metadata or {}), **metadata})
    written = 0

    def write(part: Path) -> None:
        nonlocal written
        with pyarrow.parquet.ParquetWriter(part, schema) as writer:
            for source, begin in numbered:
                for batch in source.batches():
                    marks = [
                        pyarrow.array(each, kind)
                        for each, kind in zip(_marks(duplicates, begin, len(batch), folder), kinds)
                    ]
                    begin += len(batch)
                    columns = {name: batch.column(name) for name in batch.schema.names if name not in COLUMNS}
                    for name in PATHS:
                        if name in columns:
                            columns[name] = _moved(columns[name], source, folder)
                    for field in fields:
                        columns.setdefault(field.name, pyarrow.nulls(len(batch), field.type))
                    columns |= dict(zip(COLUMNS, marks))
                    table = pyarrow.table({name: columns[name] for name in schema.names}).cast(schema)
                    if drop:
                        table = table.filter(pc.is_null(table["duplicate_of"]))
                    writer.write_table(table)
                    written += len(table)

    with files.write_errors_as(DataError, output, "choose a writable place with free space"):
        files.atomic_write(output, write)
    return written


def _marks(duplicates: Duplicates, begin: int, count: int, folder: str) -> tuple[list[Any], list[Any], list[Any]]:
    """The cells of COLUMNS for `count` rows from row `begin` on."""
    of: list[str | None] = [None] * count
    kind: list[str | None] = [None] * count
    rank: list[int | None] = [None] * count
    inside = slice(*np.searchsorted(duplicates.rows, [begin, begin + count]))
    columns = (duplicates.rows, duplicates.kept, duplicates.ranks, duplicates.kinds)
    for row, kept, place, number in zip(*(column[inside].tolist() for column in columns)):
        rank[row - begin] = place
        if number >= 0:
            of[row - begin], kind[row - begin] = relative_path(duplicates.paths[kept], folder), KINDS[number]
    return of, kind, rank


def _moved(column: "pyarrow.Array", source: Source, folder: str) -> "pyarrow.Array":
    """A column of paths for a table in another folder."""
    import pyarrow

    if os.path.dirname(os.path.abspath(source.path)) == folder:
        return column
    paths = [path and relative_path(source.absolute(path), folder) for path in column.to_pylist()]
    return pyarrow.array(paths, pyarrow.string())
