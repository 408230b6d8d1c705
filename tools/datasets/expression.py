"""Expressions of a user over the columns of a table."""

from collections.abc import Iterator
from contextlib import contextmanager

from opensora.errors import ConfigError, DataError
from tools.datasets.database import Database, Source, reason


def condition(database: Database, source: Source, expression: str, flag: str) -> str:
    """The expression as SQL that is true, false or empty for each row.

    Raises ConfigError with DuckDB's reason and the columns there are when it is no such expression. flag: it was written with,
    for messages. The database must be locked: an expression may hold queries of its own.
    """
    checked, kind = _checked(database, source, expression, flag)
    if kind != "BOOLEAN":
        raise _refusal(source, expression, flag, f"its value is {kind}, not true or false")
    return checked


def value(database: Database, source: Source, expression: str, flag: str) -> str:
    """The expression as SQL of a value of each row; raises ConfigError like `condition`."""
    return _checked(database, source, expression, flag)[0]


@contextmanager
def values_as_written(source: Source) -> Iterator[None]:
    """Raise ConfigError where an expression that was checked fails on a cell, for example CAST of a text to a number."""
    import duckdb

    try:
        yield
    except DataError as error:
        if not isinstance(error.__cause__, duckdb.DataError | duckdb.InvalidInputException):
            raise
        if "Failed to read file" in str(error):  # a damaged Parquet file
            raise
        why = reason(error.__cause__)
        raise ConfigError(
            f"{source.path}: an expression fails on a row: {why}; correct it, for example with TRY_CAST for CAST"
        ) from error


def _checked(database: Database, source: Source, expression: str, flag: str) -> tuple[str, str]:
    """SQL and the type of its value."""
    import duckdb

    if not expression.strip():
        raise _refusal(source, expression, flag, "it is empty")
    try:
        # In brackets, so that what follows an expression in a query (FROM, LIMIT, another query) is refused, not ignored. A
        # line break ends a comment.
        sql = str(duckdb.SQLExpression(f"({expression}\n)"))
        [kind] = database.types_of(f"SELECT {sql} AS value FROM {source.view}").values()
        database.types_of(f"SELECT 1 FROM {source.view} WHERE ({sql}) IS NULL")  # where aggregates have no value
    except duckdb.Error as error:
        raise _refusal(source, expression, flag, reason(error)) from error
    return f"({sql})", kind


def _refusal(source: Source, expression: str, flag: str, why: str) -> ConfigError:
    columns = ", ".join(f"{column} {kind}" for column, kind in source.types.items())
    odd = "".join(
        f"; {column} is text because a cell is {cell!r}; correct it"
        for column, cell in source.odd_cells.items()
        if column in expression
    )
    return ConfigError(
        f"{flag} {expression!r}: {why}; allowed: a DuckDB expression such as \"height >= 480 AND text LIKE '%dog%'\"; "
        f"columns of {source.path}: {columns}{odd}"
    )
