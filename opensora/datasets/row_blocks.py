"""A manifest as blocks of rows in Arrow columns, so that memory does not grow with the cells of a file."""

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.csv_rows import RowError, csv_rows, require_different
from opensora.datasets.table import require_columns, stream_table
from opensora.datasets.table_writer import is_json, is_parquet
from opensora.files import is_utf8

if TYPE_CHECKING:
    import pyarrow

_PARQUET_ROWS = 1 << 17
_NEAR = (
    0.87  # similarity of names, 0 to 1: "seeds" and "strenght" are near, "height_cm" and "weight" are none of "height"
)
_TEXT_ROWS = 1 << 14  # fewer, since the cells are Python strings until their block is in columns


class RowBlock(NamedTuple):
    """Some consecutive rows, not checked yet."""

    table: "pyarrow.Table"
    lines: Sequence[int] | NDArray[np.int64]  # first line of each row in the file; row of the Parquet from 1
    errors: dict[int, RowError]  # by position: rows that are not UTF-8, have more cells than the header, or are no JSON


def read_blocks(
    path: str, needed: Sequence[str], optional: Sequence[str], rows: int | None = None
) -> Iterator[RowBlock]:
    """Yield the file's rows with the needed and optional columns; `rows` at a time.

    Raises DataError when a needed column is missing, or a file by the name of a CSV is none.
    """
    if is_parquet(path):
        return _parquet_blocks(path, needed, optional, rows or _PARQUET_ROWS)
    return (_json_blocks if is_json(path) else _csv_blocks)(path, needed, optional, rows or _TEXT_ROWS)


def misspelled_columns(path: str, optional: Sequence[str]) -> list[str]:
    """`misspelled` of the columns of a file."""
    if is_json(path):
        return misspelled(path, stream_table(path).columns, optional)
    if not is_parquet(path):
        return misspelled(path, csv_rows(path)[0], optional)
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return misspelled(path, file.schema_arrow.names, optional)


def misspelled(path: str, columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    """A sentence for each column that letter case, blanks, - or _, or a slip of the pen keep from being an optional one."""
    plain = {_plain(name): name for name in optional if name not in columns}
    unread = {
        name: difflib.get_close_matches(_plain(name), plain, 1, _NEAR) for name in columns if name not in optional
    }
    return [
        f"{path}: column {name!r} is not read; its name would be {plain[nearest[0]]!r}; rename it if that is meant"
        for name, nearest in unread.items()
        if nearest
    ]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _parquet_blocks(path: str, needed: Sequence[str], optional: Sequence[str], rows: int) -> Iterator[RowBlock]:
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        require_different(path, columns)
        require_columns(path, columns, needed)
        first = 1
        for batch in file.iter_batches(rows, columns=[name for name in (*needed, *optional) if name in columns]):
            yield RowBlock(pyarrow.Table.from_batches([batch]), range(first, first + batch.num_rows), {})
            first += batch.num_rows


def _csv_blocks(path: str, needed: Sequence[str], optional: Sequence[str], rows: int) -> Iterator[RowBlock]:
    """Cut the file into cells with the csv module, and put the cells of each block in columns.

    Arrow's CSV reader gives no line numbers, takes no row that lacks its last cells, and stops where a quoted field is
    longer than its block.
    """
    import pyarrow

    header, reader = csv_rows(path)
    require_columns(path, header, needed)
    while block := list(islice(reader, rows)):
        errors: dict[int, RowError] = {}
        for position, (_, cells, error) in enumerate(block):
            if error is not None:
                errors[position] = error
                cells.clear()  # of a row with very many cells each would make a column
        # The header as first row: it has every column, even where each row of a block lacks the last ones.
        columns = dict(zip(header, zip_longest(header, *(cells for _, cells, _ in block))))
        names = [name for name in (*needed, *optional) if name in columns]
        table = pyarrow.table({name: pyarrow.array(columns[name][1:], pyarrow.large_string()) for name in names})
        yield RowBlock(table, np.array([line for line, _, _ in block]), errors)


def _json_blocks(path: str, needed: Sequence[str], optional: Sequence[str], rows: int) -> Iterator[RowBlock]:
    """Cells as text, as those of a CSV are; the rules for both are one. Rows may have different columns."""
    import pyarrow

    reader, names = stream_table(path).rows, (*needed, *optional)
    begun = named = False
    while block := list(islice(reader, rows)):
        errors = {position: error for position, (_, _, error) in enumerate(block) if error is not None}
        here = {name for _, cells, _ in block for name in cells}
        if here and not named:
            require_columns(path, sorted(here), needed)
        begun, named = True, named or bool(here)
        texts: dict[str, list[str | None]] = {name: [] for name in names if name in (*needed, *here)}
        for position, (_, cells, _) in enumerate(block):
            for name, column in texts.items():
                try:
                    column.append(_cell_text(name, cells.get(name)))
                except RowError as error:
                    errors.setdefault(position, error)
                    column.append(None)
        table = pyarrow.table({name: pyarrow.array(column, pyarrow.large_string()) for name, column in texts.items()})
        yield RowBlock(table, np.array([line for line, _, _ in block]), errors)
    if not begun:
        require_columns(path, [], needed)


def _cell_text(name: str, cell: Any) -> str | None:
    """A value of JSON as the cell of a CSV; None for an empty one. Raises RowError for one that cannot be any."""
    if cell is None:
        return None
    if isinstance(cell, (list, dict)):
        raise RowError(
            "not a text", f"{name} holds a JSON {type(cell).__name__}; a text or number is needed; correct it"
        )
    text = f"{cell:.0f}" if isinstance(cell, float) and cell.is_integer() else str(cell)
    if not is_utf8(text):
        raise RowError("not UTF-8", f"{name} holds half a character; correct it")
    return text
