"""Rows of a manifest by a DuckDB expression, which sees the cells of one row, and neither files nor settings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opensora.datasets.table_writer import common_type
from opensora.errors import ConfigError
from tools.packages import require_packages

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]

_NUMBER = "number of the row"  # a column that no expression can name by accident
_LEADING_ZERO = r"^[+-]?0[0-9]"  # a name, not a number


class ColumnTypes:
    """The types of columns, of which CSV has none: numbers where every cell is one, otherwise text."""

    def __init__(self) -> None:
        self._types: dict[str, pyarrow.DataType] = {}

    def add(self, rows: Sequence[Row]) -> None:
        """Look at more rows."""
        import pyarrow

        for name in dict.fromkeys(name for row in rows for name in row):
            kind = _cells([row.get(name) for row in rows]).type
            before = self._types.get(name, pyarrow.null())
            self._types[name] = common_type(before, kind)

    def arrow_table(self, rows: Sequence[Row]) -> "pyarrow.Table":
        """The rows with the types of all rows that were looked at."""
        import pyarrow
        import pyarrow.compute

        columns = {}
        for name, kind in self._types.items():
            cells = _cells([row.get(name) for row in rows])
            if pyarrow.types.is_string(kind) and not pyarrow.types.is_string(cells.type):
                cells = pyarrow.array([None if row.get(name) is None else str(row[name]) for row in rows], kind)
            columns[name] = cells.cast(pyarrow.string() if pyarrow.types.is_null(kind) else kind)
        return pyarrow.table(columns)


class Where:
    """Raises ConfigError when DuckDB refuses the expression."""

    def __init__(self, expression: str, types: ColumnTypes) -> None:
        require_packages(["duckdb"])
        import duckdb

        self._expression, self._types = expression, types
        self._duckdb = duckdb.connect(":memory:")
        # Nothing but the row: no files, no variables of this program, no settings.
        self._duckdb.execute("SET python_enable_replacements = false")
        self._duckdb.execute("SET enable_external_access = false")
        self._duckdb.execute("SET lock_configuration = true")
        self.wanted([])

    def wanted(self, rows: Sequence[Row]) -> list[bool]:
        """For each row, True if the expression is true for it."""
        import duckdb
        import pyarrow

        table = self._types.arrow_table(rows)
        columns = table.column_names
        table = table.append_column(_NUMBER, pyarrow.array(range(len(rows)), pyarrow.int64()))
        self._duckdb.register("manifest", table)
        try:
            # A condition may look at one row at a time only: sums and windows are refused there.
            kept = self._duckdb.execute(f'SELECT "{_NUMBER}" FROM manifest WHERE ({self._expression}\n)')
            numbers = {number for (number,) in kept.fetchall()}
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"--where {self._expression!r}: {reason}; allowed: a DuckDB expression over the columns "
                f"{', '.join(columns) or 'of the inputs, which have no readable row'}"
            ) from error
        finally:
            self._duckdb.unregister("manifest")
        return [number in numbers for number in range(len(rows))]


def _cells(cells: list[Any]) -> "pyarrow.Array":
    """As numbers where all of them are, as their own type, or as text; an empty text and NaN are no cells."""
    import pyarrow

    try:
        array = pyarrow.array([None if cell == "" else cell for cell in cells], from_pandas=True)  # NaN: null
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.array([None if cell is None or cell == "" else str(cell) for cell in cells], pyarrow.string())
    return _numbers(array) if pyarrow.types.is_string(array.type) else array


def _numbers(texts: "pyarrow.Array") -> "pyarrow.Array":
    import pyarrow
    from pyarrow import compute

    if compute.any(compute.match_substring_regex(texts, _LEADING_ZERO)).as_py():
        return texts
    for kind in (pyarrow.int64(), pyarrow.float64()):
        try:
            numbers = compute.utf8_trim_whitespace(texts).cast(kind)
        except pyarrow.ArrowInvalid:
            continue
        return compute.if_else(compute.is_nan(numbers), None, numbers)  # DuckDB takes NaN for the greatest number
    return texts
