"""Paths of a table in another folder, as SQL: relative ones belong to the folder of the table that they stand in."""

import os

_BLANKS = "' ' || chr(9) || chr(10) || chr(13)"
_ODD = f"('/.~' || {_BLANKS})"  # first characters of paths that are not relative and plain


def moved_path(column: str, source: str, target: str) -> str:
    """An SQL expression: the path of a cell of a table in folder `source`, for a table in folder `target`.

    Below `target` it is relative, elsewhere absolute, as opensora.datasets.table.write_table writes it. URLs and empty cells
    stay. column: SQL of the cell.
    """
    source, target = (os.path.abspath(folder) for folder in (source, target))
    above, below = _prefix(source), _prefix(target)
    plain = column if above == below else f"{text(above.removeprefix(below))} || {column}"
    if below.startswith(above) and above != below:  # the table moves down
        rest = below[len(above) :]
        plain = f"CASE WHEN starts_with({column}, {text(rest)}) THEN substr({column}, {len(rest) + 1}) ELSE {plain} END"
    # First the two kinds that most tables have, since each further case costs seconds for millions of rows. No IN: DuckDB
    # makes a join of it, which changes the order of the rows.
    return (
        f"CASE WHEN NOT contains({_ODD}, substr({column}, 1, 1)) AND NOT contains({column}, '://') "
        f"THEN {plain} WHEN starts_with({column}, '/') THEN {_below(column, below)} ELSE {_odd(column, source, below)} END"
    )


def _below(cell: str, prefix: str) -> str:
    """The cell without the prefix, where it begins with it."""
    return f"CASE WHEN starts_with({cell}, {text(prefix)}) THEN substr({cell}, {len(prefix) + 1}) ELSE {cell} END"


def _odd(column: str, source: str, below: str) -> str:
    """Paths with blanks around them, and those that begin with ~ or a dot; URLs."""
    cell = f"trim({column}, {_BLANKS})"
    absolute = (
        f"CASE WHEN starts_with({cell}, '/') THEN {cell} "
        f"WHEN {cell} = '~' OR starts_with({cell}, '~/') THEN {text(os.path.expanduser('~'))} || substr({cell}, 2) "
        f"{_climbing(cell, source)}"
        f"WHEN starts_with({cell}, './') THEN {text(_prefix(source))} || substr({cell}, 3) "
        f"ELSE {text(_prefix(source))} || {cell} END"
    )
    return (
        f"CASE WHEN {column} IS NULL OR {cell} = '' OR regexp_matches({cell}, '^[A-Za-z][A-Za-z0-9+.-]*://') THEN {column} "
        f"ELSE {_below(absolute, below)} END"
    )


def _climbing(cell: str, folder: str) -> str:
    """The cases of ../, ../../ and so on, up to the root, the longest first."""
    cases: list[str] = []
    parents, steps = folder, ""
    while parents != os.sep:
        parents, steps = os.path.dirname(parents), steps + "../"
        cases.insert(
            0, f"WHEN starts_with({cell}, '{steps}') THEN {text(_prefix(parents))} || substr({cell}, {len(steps) + 1}) "
        )
    return "".join(cases)


def _prefix(folder: str) -> str:
    return folder.rstrip(os.sep) + os.sep


def text(value: str) -> str:
    """`value` as a string of SQL."""
    return "'" + value.replace("'", "''") + "'"


def name(column: str) -> str:
    """`column` as a name of SQL."""
    return '"' + column.replace('"', '""') + '"'
