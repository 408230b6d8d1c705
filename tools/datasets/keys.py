"""Rows of two tables that belong together: equal keys, with paths compared as the files that they name."""

from collections.abc import Sequence

from opensora.errors import DataError
from tools.datasets.database import ROW, Database, Source
from tools.datasets.moved_path import name

_SHOWN = 3
_EXACT = 2**53  # whole numbers that a float holds


def key(source: Source, column: str, folder: str, alias: str = "") -> str:
    """SQL of a cell as text, so that 7 in a CSV equals 7.0 in a Parquet file; paths as seen from `folder`."""
    cell = source.moved(column, folder, alias)
    if source.types[column] in ("FLOAT", "DOUBLE"):
        whole = f"{cell} = floor({cell}) AND abs({cell}) < {_EXACT}"
        return f"CASE WHEN {whole} THEN CAST(CAST({cell} AS BIGINT) AS VARCHAR) ELSE CAST({cell} AS VARCHAR) END"
    return f"CAST({cell} AS VARCHAR)"


def require_unique(database: Database, source: Source, columns: Sequence[str]) -> None:
    """Raise DataError, with the first of them, for keys that several rows have; a key with an empty cell is none."""
    names = ", ".join(map(name, columns))
    full = " AND ".join(f"{name(column)} IS NOT NULL" for column in columns)
    repeated = (
        f"SELECT {names}, count(*) AS repeats, min({name(ROW)}) + 1 AS first FROM {source.numbered} WHERE {full} "
        f"GROUP BY {names} HAVING count(*) > 1"
    )
    [count] = database.row(f"SELECT count(*) FROM ({repeated})")
    if not count:
        return
    shown = []
    for *cells, repeats, first in database.rows(f"SELECT * FROM ({repeated}) ORDER BY first LIMIT {_SHOWN}"):
        words = ", ".join(f"{column} {cell!r}" for column, cell in zip(columns, cells))
        shown.append(f"{words} in {repeats} rows, the first of them row {first}")
    raise DataError(
        f"{source.path}: {count:,} keys stand in several rows: {'; '.join(shown)}{'; ...' if count > _SHOWN else ''}; allowed: "
        "one row for each key; remove the others, or name more columns with --on"
    )
