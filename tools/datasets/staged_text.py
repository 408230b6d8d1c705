"""CSV and JSON lines as Parquet files for DuckDB, with the type of each column that all its cells have.

A column of CSV is one of whole numbers, numbers or true/false where every cell that is not empty is one. Leading zeros and
more than 18 digits make a name, not a number, and such columns stay text. Words for an empty cell (nan, None, ...) count
as empty among numbers and true/false, and are text among text.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

from opensora.datasets.csv_rows import csv_rows
from opensora.datasets.missing_values import WORDS
from opensora.errors import DataError
from opensora.files import is_utf8

if TYPE_CHECKING:
    import pyarrow

_ROWS = 1 << 14  # at a time
_MOST_MESSAGES = 100
_WHOLE = r"^-?(0|[1-9][0-9]{0,17})$"
_NUMBER = r"^-?((0|[1-9][0-9]{0,17})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$|^-?inf$"
_TRUTH = r"^(True|False|true|false|TRUE|FALSE)$"
EMPTY = '"NULL"'  # the type of a column without a value, as DuckDB writes it
KINDS = {"BIGINT": _WHOLE, "DOUBLE": _NUMBER, "BOOLEAN": _TRUTH}  # type of DuckDB -> its cells, the narrowest first


@dataclass
class StagedText:
    """A file as Parquet.

    types: column -> type of DuckDB; cells are stored as text where the type is another than VARCHAR, and of JSON lines in the
    type itself. odd_cells: column -> the cell that makes text of a column of numbers. damaged: "line: reason" of the first rows
    that cannot be read; damaged_rows: of all of them.
    """

    types: dict[str, str]
    rows: int = 0
    damaged: list[str] = field(default_factory=list)
    odd_cells: dict[str, str] = field(default_factory=dict)
    damaged_rows: int = 0

    def skip(self, line: int, reason: object) -> None:
        self.damaged_rows += 1
        if len(self.damaged) < _MOST_MESSAGES:
            self.damaged.append(f"{line}: {reason}")


def stage_csv(path: str, target: str) -> StagedText:
    """Write the rows that can be read to `target`, cells as text. Raises DataError when the file is no CSV."""
    import pyarrow
    import pyarrow.parquet

    header, rows = csv_rows(path)
    names = [name or f"column{number}" for number, name in enumerate(header)]
    if not is_utf8("".join(names)):
        raise DataError(f"{path}: the names of the columns are not UTF-8; save the file as UTF-8")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    kinds = {name: _TextKind() for name in names}
    staged = StagedText({})
    with pyarrow.parquet.ParquetWriter(target, schema, compression="lz4") as writer:
        while block := list(islice(rows, _ROWS)):
            good = []
            for line, cells, error in block:
                if error is None:
                    good.append(cells)
                else:
                    staged.skip(line, error)
            # The header as first row: it has every column, even where each row lacks the last ones.
            columns = [list(each)[1:] for each in zip_longest(header, *good)]
            arrays = [_empty_as_null(cells) for cells in columns[: len(names)]]
            for name, array in zip(names, arrays):
                kinds[name].add(array)
            writer.write_table(pyarrow.table(arrays, schema=schema))
            staged.rows += len(good)
    staged.types = {name: kind.type for name, kind in kinds.items()}
    staged.odd_cells = {name: kind.odd_cell for name, kind in kinds.items() if kind.odd_cell is not None}
    return staged


def _empty_as_null(cells: list[str | None]) -> "pyarrow.StringArray":
    import pyarrow

    return pyarrow.array([cell or None for cell in cells], pyarrow.string())


class _TextKind:
    """The types that all cells of a column so far can have."""

    def __init__(self) -> None:
        self._possible = list(KINDS)
        self._values = False  # a cell that is neither empty nor a word for it
        self.odd_cell: str | None = None  # the first that is no number, in a column that mostly holds numbers

    def add(self, cells: "pyarrow.StringArray") -> None:
        import pyarrow
        import pyarrow.compute as compute

        if not self._possible and self._values:
            return
        cells = compute.utf8_trim_whitespace(cells.drop_null())
        words = compute.is_in(cells, pyarrow.array([*WORDS, ""], pyarrow.string()))
        cells = cells.filter(compute.invert(words))
        self._values = self._values or len(cells) > 0
        if "DOUBLE" in self._possible:
            odd = cells.filter(compute.invert(compute.match_substring_regex(cells, _NUMBER)))
            if 0 < len(odd) <= len(cells) / 2:
                self.odd_cell = odd[0].as_py()[:40]
        self._possible = [
            kind
            for kind in self._possible
            if compute.all(compute.match_substring_regex(cells, KINDS[kind])).as_py() is not False
        ]

    @property
    def type(self) -> str:
        return EMPTY if not self._values else self._possible[0] if self._possible else "VARCHAR"


def stage_json(path: str, target: str) -> StagedText:
    """Write the lines that are JSON objects to `target`; cells that are lists, objects or of several types become JSON."""
    import pyarrow
    import pyarrow.parquet

    staged, kinds = StagedText({}), dict[str, str]()
    for line, cells in _json_lines(path):
        if isinstance(cells, str):
            staged.skip(line, cells)
            continue
        staged.rows += 1
        for name, cell in cells.items():
            kinds[name] = _common(kinds.get(name, ""), _kind(cell))
    staged.types = {name: kind or EMPTY for name, kind in kinds.items()}
    arrow = {"BIGINT": pyarrow.int64(), "DOUBLE": pyarrow.float64(), "BOOLEAN": pyarrow.bool_()}
    schema = pyarrow.schema([(name, arrow.get(kind, pyarrow.string())) for name, kind in staged.types.items()])
    every = (cells for _, cells in _json_lines(path) if not isinstance(cells, str))
    with pyarrow.parquet.ParquetWriter(target, schema, compression="lz4") as writer:
        while block := list(islice(every, _ROWS)):
            writer.write_table(_json_table(block, staged.types, schema))
    return staged


def _json_table(rows: Sequence[dict[str, Any]], types: dict[str, str], schema: "pyarrow.Schema") -> "pyarrow.Table":
    import pyarrow

    arrays = []
    for entry in schema:
        cells = [row.get(entry.name) for row in rows]
        if types[entry.name] == "JSON":
            cells = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
        elif types[entry.name] == "DOUBLE":
            cells = [None if cell is None else float(cell) for cell in cells]
        arrays.append(pyarrow.array(cells, entry.type))
    return pyarrow.table(arrays, schema=schema)


def _json_lines(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line, the object in it or why there is none); blank lines are left out."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, each in enumerate(file, start=1):
            if each.strip():
                yield line, _json_object(each)


def _json_object(line: str) -> dict[str, Any] | str:
    try:
        line.encode()
        cells = json.loads(line)
        json.dumps(cells, ensure_ascii=False).encode()  # an escape may stand for half a character
    except UnicodeError:
        return "the line is not UTF-8; write it again as UTF-8"
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON ({error}); correct it"
    if not isinstance(cells, dict):
        return f"the line is a JSON {type(cells).__name__}; an object with a value for each column is needed"
    return cells


def _kind(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return "BOOLEAN"
    if isinstance(cell, int):
        return "BIGINT" if -(2**63) <= cell < 2**63 else "JSON"
    return {float: "DOUBLE", str: "VARCHAR"}.get(type(cell), "JSON")


def _common(one: str, other: str) -> str:
    if one == other or not other:
        return one
    if not one:
        return other
    return "DOUBLE" if {one, other} == {"BIGINT", "DOUBLE"} else "JSON"
