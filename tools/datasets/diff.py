"""Compare two tables: rows added, rows removed, and cells that changed.

Run: python -m tools.datasets.diff old.csv new.parquet
     python -m tools.datasets.diff old.csv new.csv changes.csv --on video shot

Rows are matched by their key. Paths are equal when they name one file, numbers when their values are, whatever the formats.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tools.datasets.database import ROW, Database, Source
from tools.datasets.keys import key, require_unique
from tools.datasets.moved_path import name, text
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

KEY = ("path", "start", "end")  # a row of a manifest


@dataclass(frozen=True)
class Difference:
    """Counts of what differs. changed: cells by column, in both tables' rows of one key."""

    added: int
    removed: int
    changed_rows: int
    changed: dict[str, int]
    new_columns: list[str]
    lost_columns: list[str]

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.removed or self.changed_rows or self.new_columns or self.lost_columns)


def compare(database: Database, old: Source, new: Source, on: Sequence[str]) -> Difference:
    """Make the table `changes` (change, row, key, column_name, old, new) and return its counts.

    row: of the new table, from 1; of the old one where a row was removed.
    """
    for source in (old, new):
        source.require(*on)
        require_unique(database, source, on)
    shared = [column for column in old.columns if column in new.types and column not in on]
    for view, source in (("o", old), ("n", new)):
        cells = [f"{_key(source, on, database.folder)} AS k", f"{name(ROW)} AS row_number"]
        cells += [f"{key(source, column, database.folder)} AS c{n}" for n, column in enumerate(shared)]
        database.execute(f"CREATE TEMP VIEW {view} AS SELECT {', '.join(cells)} FROM {source.numbered}")
    queries = [
        "SELECT 'added' AS change, row_number + 1 AS row_number, k, NULL AS column_name, NULL AS old, NULL AS new "
        "FROM n ANTI JOIN o USING (k)",
        "SELECT 'removed', row_number + 1, k, NULL, NULL, NULL FROM o ANTI JOIN n USING (k)",
    ]
    for number, column in enumerate(shared):
        cell = f"c{number}"
        queries.append(
            f"SELECT 'changed', n.row_number + 1, k, {text(column)}, o.{cell}, n.{cell} FROM n JOIN o USING (k) "
            f"WHERE n.{cell} IS DISTINCT FROM o.{cell}"
        )
    database.execute(f"CREATE TEMP TABLE changes AS {' UNION ALL '.join(queries)}")
    counts = {kind: rows for kind, rows in database.rows("SELECT change, count(*) FROM changes GROUP BY change")}
    changed = dict(
        database.rows(
            "SELECT column_name, count(*) FROM changes WHERE change = 'changed' GROUP BY 1 ORDER BY 2 DESC, 1"
        )
    )
    [changed_rows] = database.row("SELECT count(DISTINCT k) FROM changes WHERE change = 'changed'")
    return Difference(
        counts.get("added", 0),
        counts.get("removed", 0),
        changed_rows,
        changed,
        [column for column in new.columns if column not in old.types],
        [column for column in old.columns if column not in new.types],
    )


def _key(source: Source, on: Sequence[str], folder: str) -> str:
    cells = [f"coalesce({key(source, column, folder)}, '')" for column in on]
    return " || ' | ' || ".join(cells)


def report(database: Database, difference: Difference, shown: int) -> list[str]:
    """The difference as lines: counts, then the first rows of each kind."""
    lines = [f"columns added: {', '.join(difference.new_columns)}"] if difference.new_columns else []
    lines += [f"columns removed: {', '.join(difference.lost_columns)}"] if difference.lost_columns else []
    lines.append(
        f"rows: {difference.added:,} added, {difference.removed:,} removed, {difference.changed_rows:,} changed"
    )
    lines += [f"cells changed in {column}: {cells:,}" for column, cells in difference.changed.items()]
    for kind in ("added", "removed", "changed"):
        rows = database.rows(
            f"SELECT k, column_name, old, new FROM changes WHERE change = '{kind}' ORDER BY row_number, column_name LIMIT {shown}"
        )
        for row_key, column, before, after in rows:
            lines.append(f"{kind} {row_key}" + (f": {column} {before!r} -> {after!r}" if column is not None else ""))
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.diff", __doc__)
    parser.add_argument("old", metavar="OLD", help=INPUT)
    parser.add_argument("new", metavar="NEW", help="as OLD")
    parser.add_argument(
        "--on",
        metavar="COLUMN",
        nargs="+",
        action="extend",
        help=f"the key (default: those of {', '.join(KEY)} in both)",
    )
    parser.add_argument("output", metavar="OUT", nargs="?", help=f"all changes as a {OUTPUT}")
    parser.add_argument("--shown", type=int, default=10, help="rows of each kind to print (default: %(default)s)")
    add_switch(parser, "--exit-code", "exit with 1 where the tables differ")
    return run_command(parser, argv, _diff)


def _diff(options: argparse.Namespace) -> int:
    if options.output is not None:
        require_outputs(options.output)
    with Database(options.output, memory_gb=options.memory_gb) as database:
        old, new = (open_table(database, getattr(options, side), options, side) for side in ("old", "new"))
        on = options.on or [column for column in KEY if column in old.types and column in new.types] or ["path"]
        difference = compare(database, old, new, on)
        print("\n".join(report(database, difference, max(0, options.shown))))
        if options.output is not None:
            query = (
                "SELECT change, row_number, k AS key, column_name, old, new FROM changes "
                "ORDER BY change, row_number, column_name"
            )
            write_result(database, query, options)
        return int(options.exit_code and not difference.is_empty)


if __name__ == "__main__":
    sys.exit(main())
