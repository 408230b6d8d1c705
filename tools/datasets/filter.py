"""Keep the rows that fit: conditions are DuckDB expressions over the columns.

Run: python -m tools.datasets.filter scored.parquet train.parquet --keep 'aes >= 5' --keep "text NOT LIKE '%logo%'"
     python -m tools.datasets.filter scored.parquet train.parquet --preset high_quality --balance cmotion --per-value 5000

A preset's conditions are used where the table has their columns; those that it lacks are named. A condition is not met
where its value is empty. Printed: the rows that each condition removes alone and in this order, and its empty values.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from opensora.errors import ConfigError, DataError
from tools.datasets.database import ROW, Database, Source
from tools.datasets.draw import draw
from tools.datasets.expression import condition, value, values_as_written
from tools.datasets.filter_presets import PRESETS, Condition
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


@dataclass(frozen=True)
class Removed:
    """The rows that one condition removes."""

    condition: str
    alone: int
    in_order: int  # of those that the conditions before it keep
    left: int  # after it, in order
    empty: int  # rows for which its value is empty


def decide(
    database: Database,
    source: Source,
    conditions: Sequence[tuple[str, str]],
    balance: tuple[str, int, int] | None = None,
) -> list[Removed]:
    """Make the table `kept` with a column `keep` for each row of the source, in its order.

    conditions: (words for it, SQL). balance: (SQL of a value, most rows for each value, seed).
    """
    # Each condition is evaluated once, so that counts and rows agree even where it calls random(). The rows are sorted by
    # their numbers, for DuckDB makes joins of queries and lists inside conditions, which change the order.
    columns = [f"{sql} AS c{number}" for number, (_, sql) in enumerate(conditions)]
    columns += [f"{balance[0]} AS value"] if balance is not None else []
    names = ", ".join([f"{name(ROW)} AS n", *columns])
    with values_as_written(source):
        database.execute(f"CREATE TEMP TABLE decisions AS SELECT {names} FROM {source.numbered} ORDER BY n")
    removed = _count(database, [words for words, _ in conditions], source.rows)
    every = " AND ".join(["true", *(f"c{number} IS TRUE" for number in range(len(conditions)))])
    if balance is None:
        database.execute(f"CREATE TEMP TABLE kept AS SELECT {every} AS keep FROM decisions")
        return removed
    _, most, seed = balance
    database.execute(
        f"CREATE TEMP TABLE chosen AS SELECT n FROM decisions WHERE {every} QUALIFY row_number() OVER "
        f"(PARTITION BY value ORDER BY {draw('n', seed)}, n) <= {most}"
    )
    database.execute(
        "CREATE TEMP TABLE kept AS SELECT chosen.n IS NOT NULL AS keep FROM decisions LEFT JOIN chosen USING (n) "
        "ORDER BY decisions.n"
    )
    before = removed[-1].left if removed else source.rows
    [left] = database.row("SELECT count(*) FROM chosen")
    [empty] = database.row(f"SELECT count(*) FROM decisions WHERE {every} AND value IS NULL")
    return [*removed, Removed("balance", before - left, before - left, left, empty)]


def _count(database: Database, words: Sequence[str], rows: int) -> list[Removed]:
    if not words:
        return []
    counts, before = [], "true"
    for number in range(len(words)):
        column = f"c{number}"
        tests = (f"{column} IS NOT TRUE", f"{before} AND {column} IS NOT TRUE", f"{column} IS NULL")
        counts += [f"count(*) FILTER (WHERE {test})" for test in tests]
        before = f"{before} AND {column} IS TRUE"
    values = database.row(f"SELECT {', '.join(counts)} FROM decisions")
    removed, left = [], rows
    for number, each in enumerate(words):
        alone, in_order, empty = values[3 * number : 3 * number + 3]
        left -= in_order
        removed.append(Removed(each, alone, in_order, left, empty))
    return removed


def preset_conditions(preset: str, columns: Sequence[str]) -> tuple[list[Condition], list[Condition]]:
    """The conditions of a preset for a table with these columns, and those that it lacks columns for."""
    present = {column.casefold() for column in columns}
    usable = [each for each in PRESETS[preset] if set(each.columns) <= present]
    return usable, [each for each in PRESETS[preset] if each not in usable]


def report(source: Source, removed: Sequence[Removed]) -> str:
    """The counts as lines."""
    head = ("condition", "removes alone", "in order", "left", "empty value")
    cells = [
        (each.condition, *(f"{n:,}" for n in (each.alone, each.in_order, each.left, each.empty))) for each in removed
    ]
    table = [head, ("all rows", "", "", f"{source.rows:,}", ""), *cells]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in table
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.filter", __doc__)
    parser.add_argument("source", metavar="IN", help=INPUT)
    parser.add_argument("output", metavar="OUT", help=OUTPUT)
    parser.add_argument(
        "--keep", metavar="EXPRESSION", action="append", default=[], help="a condition; may be repeated"
    )
    parser.add_argument("--preset", choices=list(PRESETS), help="the conditions of a stage of training")
    parser.add_argument("--balance", metavar="EXPRESSION", help="keep at most --per-value rows of each of its values")
    parser.add_argument("--per-value", metavar="N", type=int, help="most rows of each value of --balance")
    parser.add_argument("--seed", type=int, default=0, help="of the choice that --balance makes (default: %(default)s)")
    add_switch(parser, "--dry-run", "print the counts and write nothing")
    return run_command(parser, argv, _filter)


def _filter(options: argparse.Namespace) -> None:
    require_outputs(options.output)
    too_few = options.per_value is not None and options.per_value < 1
    if (options.balance is None) != (options.per_value is None) or too_few:
        raise ConfigError(
            f"filter: --balance {options.balance} --per-value {options.per_value}; allowed: both, with 1 row or more; set both"
        )
    if not (options.keep or options.preset or options.balance):
        raise ConfigError("filter: no condition; allowed: --keep, --preset, --balance, or several of them; set one")
    with Database(options.output, memory_gb=options.memory_gb) as database:
        source = open_table(database, options.source, options)
        database.lock()
        conditions = [(text, condition(database, source, text, "--keep")) for text in options.keep]
        if options.preset:
            conditions += _preset(database, source, options.preset)
        balance = None
        if options.balance is not None:
            balance = value(database, source, options.balance, "--balance"), options.per_value, options.seed
        removed = decide(database, source, conditions, balance)
        print(report(source, removed))
        if options.dry_run:
            return
        if not removed[-1].left:
            worst = max(removed, key=lambda each: each.alone)
            raise DataError(
                f"{options.output}: not written, no row of {source.rows:,} is left; {worst.condition!r} removes most, "
                f"{worst.alone:,}; change the conditions"
            )
        selection = source.selection(database.folder, "t")
        write_result(database, f"SELECT {selection} FROM {source.view} t POSITIONAL JOIN kept WHERE kept.keep", options)


def _preset(database: Database, source: Source, preset: str) -> list[tuple[str, str]]:
    usable, lacking = preset_conditions(preset, source.columns)
    for each in lacking:
        missing = [column for column in each.columns if column not in {known.casefold() for known in source.columns}]
        print(f"skipped: {each.expression}: no column {', '.join(missing)}; {each.maker} makes it", file=sys.stderr)
    if not usable:
        raise ConfigError(
            f"--preset {preset}: {source.path} has no column that it needs; columns: {', '.join(source.columns)}; run the tools "
            "above first"
        )
    return [(each.expression, condition(database, source, each.expression, f"--preset {preset}")) for each in usable]


if __name__ == "__main__":
    sys.exit(main())
