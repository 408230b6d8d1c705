"""Add the columns of one table to the rows of another that have equal keys.

Run: python -m tools.datasets.join clips.parquet scores.csv scored.parquet --on path
     python -m tools.datasets.join clips.csv captions.csv train.csv --on video shot --how inner

LEFT's rows keep their order. A key stands once in RIGHT and any number of times in LEFT. Paths are equal when they name
one file, whatever folder their tables lie in.
"""

import argparse
import sys
from collections.abc import Sequence

from opensora.errors import ConfigError, DataError
from tools.datasets.database import ROW, Database, Source
from tools.datasets.keys import key, require_unique
from tools.datasets.moved_path import name
from tools.datasets.table_command import (
    INPUT,
    OUTPUT,
    add_switch,
    open_table,
    require_outputs,
    run_command,
    table_parser,
    write_result,
)


def added_columns(left: Source, right: Source, on: Sequence[str], wanted: Sequence[str], replace: bool) -> list[str]:
    """The columns of RIGHT to add. Raises ConfigError for those that LEFT has as well, unless `replace`."""
    right.require(*wanted)
    columns = [column for column in (wanted or right.columns) if column not in on]
    both = [column for column in columns if column in left.types]
    if both and not replace:
        raise ConfigError(
            f"join: {left.path} and {right.path} both have {', '.join(map(repr, both))}; allowed: new columns; name those to "
            "add with --columns, or take RIGHT's cells with --replace"
        )
    if not columns:
        raise ConfigError(f"join: {right.path} has no column to add besides {', '.join(on)}; name another table")
    return columns


def join(database: Database, left: Source, right: Source, on: Sequence[str], columns: Sequence[str]) -> tuple[int, int]:
    """Make the table `matched` with a row for each of LEFT in its order: `matched`, and the columns of RIGHT.

    Returns the rows of LEFT with a match, and those of RIGHT that match none.
    """
    require_unique(database, right, on)
    # Keys and added columns alone are sorted and kept, never LEFT's other columns.
    keys = {
        side: ", ".join(f"{key(source, column, database.folder)} AS k{n}" for n, column in enumerate(on))
        for side, source in (("left", left), ("right", right))
    }
    cells = ", ".join(f"{right.moved(column, database.folder)} AS r{n}" for n, column in enumerate(columns))
    equal = " AND ".join(f"l.k{n} = r.k{n}" for n in range(len(on)))
    added = "".join(f", r.r{n}" for n in range(len(columns)))
    database.execute(
        f"CREATE TEMP TABLE matched AS SELECT r.n IS NOT NULL AS matched, r.n{added} "
        f"FROM (SELECT {name(ROW)} AS n, {keys['left']} FROM {left.numbered}) l LEFT JOIN "
        f"(SELECT {name(ROW)} AS n, {keys['right']}, {cells} FROM {right.numbered}) r ON {equal} ORDER BY l.n"
    )
    [matches, used] = database.row("SELECT count(*) FILTER (WHERE matched), count(DISTINCT n) FROM matched")
    return matches, right.rows - used


def join_query(left: Source, columns: Sequence[str], folder: str, inner: bool) -> str:
    """SQL of LEFT's rows with the new columns behind; where a column is replaced, a row without a match keeps its cell."""
    cells = []
    for column in left.columns:
        cell = left.moved(column, folder, "t")
        if column in columns:
            cell = f"CASE WHEN m.matched THEN m.r{columns.index(column)} ELSE {cell} END"
        cells.append(f"{cell} AS {name(column)}")
    cells += [f"m.r{n} AS {name(column)}" for n, column in enumerate(columns) if column not in left.types]
    wanted = " WHERE m.matched" if inner else ""
    return f"SELECT {', '.join(cells)} FROM {left.view} t POSITIONAL JOIN matched m{wanted}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.join", __doc__)
    parser.add_argument("left", metavar="LEFT", help=INPUT)
    parser.add_argument("right", metavar="RIGHT", help="as LEFT")
    parser.add_argument("output", metavar="OUT", help=OUTPUT)
    parser.add_argument("--on", metavar="COLUMN", nargs="+", action="extend", help="the key (default: path)")
    parser.add_argument("--how", choices=["left", "inner"], default="left", help="inner: only rows with a match")
    parser.add_argument(
        "--columns", metavar="COLUMN", nargs="+", action="extend", default=[], help="to add (default: all)"
    )
    add_switch(parser, "--replace", "take RIGHT's cells for columns that both have")
    return run_command(parser, argv, _join)


def _join(options: argparse.Namespace) -> None:
    require_outputs(options.output)
    on = options.on or ["path"]
    with Database(options.output, memory_gb=options.memory_gb) as database:
        left, right = (open_table(database, getattr(options, side), options, side) for side in ("left", "right"))
        left.require(*on)
        right.require(*on)
        columns = added_columns(left, right, on, options.columns, options.replace)
        matches, unused = join(database, left, right, on, columns)
        print(
            f"{matches:,} of {left.rows:,} rows of {left.path} have a match; {unused:,} of {right.rows:,} rows of {right.path} "
            "are not used",
            file=sys.stderr,
        )
        if not matches:
            raise DataError(
                f"{options.output}: not written, no row of {left.path} has a match in {right.path}; keys look like "
                f"{_example(database, left, on)} and {_example(database, right, on)}; change --on"
            )
        write_result(database, join_query(left, columns, database.folder, options.how == "inner"), options)


def _example(database: Database, source: Source, on: Sequence[str]) -> str:
    rows = database.rows(
        f"SELECT {', '.join(key(source, column, database.folder) for column in on)} FROM {source.view} LIMIT 1"
    )
    return ", ".join(map(repr, rows[0])) if rows else "nothing"


if __name__ == "__main__":
    sys.exit(main())
