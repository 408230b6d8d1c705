"""Put tables one after the other; columns are matched by name, and a cell that a table lacks is empty.

Run: python -m tools.datasets.merge a.csv b.parquet shards/ all.parquet
"""

import argparse
import sys
from collections.abc import Sequence

from opensora.errors import ConfigError
from tools.datasets.database import Database, Source, common_type
from tools.datasets.moved_path import name
from tools.datasets.staged_text import EMPTY
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


def merged_types(sources: Sequence[Source], as_text: bool = False) -> dict[str, str]:
    """Column -> the type that holds its cells of all tables. Raises ConfigError where there is none, unless `as_text`."""
    types: dict[str, str] = {}
    first: dict[str, str] = {}  # column -> table
    for source in sources:
        for column, kind in source.types.items():
            kind = EMPTY if column in source.empty else kind
            other = types.setdefault(column, kind)
            both = common_type(other, kind) or ("VARCHAR" if as_text else None)
            if both is None:
                raise ConfigError(
                    f"merge: column {column!r} holds {other} in {first[column]} and {kind} in {source.path}; allowed: types that "
                    "fit together; correct one of them, or write such columns as text with --as-text"
                )
            if both != other or column not in first:
                first[column] = source.path
            types[column] = both
    return {column: "VARCHAR" if kind == EMPTY else kind for column, kind in types.items()}


def merge_query(sources: Sequence[Source], types: dict[str, str], folder: str) -> str:
    """SQL of all rows, in order, with paths for a table in `folder`."""
    parts = []
    for source in sources:
        cells = []
        for column, kind in types.items():
            cell = source.moved(column, folder) if column in source.types else "NULL"
            cells.append(f"CAST({cell} AS {kind}) AS {name(column)}")
        parts.append(f"SELECT {', '.join(cells)} FROM {source.view}")
    return " UNION ALL ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.merge", __doc__)
    parser.add_argument("sources", metavar="IN", nargs="+", help=INPUT)
    parser.add_argument("output", metavar="OUT", help=OUTPUT)
    add_switch(parser, "--as-text", "write columns of different types as text")
    return run_command(parser, argv, _merge)


def _merge(options: argparse.Namespace) -> None:
    require_outputs(options.output)
    with Database(options.output, memory_gb=options.memory_gb) as database:
        sources = [open_table(database, path, options, f"table{n}") for n, path in enumerate(options.sources)]
        types = merged_types(sources, options.as_text)
        for source in sources:
            lacking = [column for column in types if column not in source.types]
            if lacking:
                print(f"{source.path}: has no {', '.join(lacking)}; these cells are empty", file=sys.stderr)
        write_result(database, merge_query(sources, types, database.folder), options)


if __name__ == "__main__":
    sys.exit(main())
