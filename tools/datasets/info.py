"""Describe a table: rows, columns with their types, empty cells and values, and the tools that made it.

Run: python -m tools.datasets.info clips.parquet
     python -m tools.datasets.info shards/ --json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tools.datasets.database import Database, Source
from tools.datasets.moved_path import name
from tools.datasets.table_command import INPUT, open_table, run_command, table_parser
from tools.history import read_history

_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
NUMBERS = (*_WHOLE, "FLOAT", "DOUBLE")
_LONGEST = 28  # characters of a value in the table


@dataclass(frozen=True)
class Column:
    """One column. Of numbers lowest, median and highest are set, of text lowest and highest (its shortest and longest)."""

    name: str
    type: str
    empty: int
    different: int  # values, estimated to some percent for many
    lowest: Any = None
    median: Any = None
    highest: Any = None
    example: Any = None


def is_number(kind: str) -> bool:
    return kind in NUMBERS or kind.startswith("DECIMAL")


def describe(database: Database, source: Source) -> list[Column]:
    """Every column of the table, one after the other, so that memory is that of one."""
    columns = []
    for column, kind in source.types.items():
        cell = name(column)
        values = ["count(*) - count({0})", "approx_count_distinct({0})", "any_value({0})"]
        if is_number(kind):
            values += ["min({0})", "median({0})", "max({0})"]
        elif kind == "VARCHAR":
            values += ["min(length({0}))", "median(length({0}))", "max(length({0}))"]
        query = f"SELECT {', '.join(values).format(cell)} FROM {source.view}"
        empty, different, example, *rest = database.row(query)
        lowest, median, highest = rest or (None, None, None)
        if different < 1000:
            [different] = database.row(f"SELECT count(DISTINCT {cell}) FROM {source.view}")
        columns.append(Column(column, kind, empty, different, lowest, median, highest, example))
    return columns


def lines(source: Source, columns: Sequence[Column], history: Sequence[dict[str, Any]]) -> list[str]:
    """The description for a terminal."""
    head = ("column", "type", "empty", "different", "min", "median", "max", "example")
    table: list[tuple[str, ...]] = [head]
    for each in columns:
        of = " chars" if each.type == "VARCHAR" and each.lowest is not None else ""
        numbers = [
            f"{_short(value)}{of}" if value is not None else "" for value in (each.lowest, each.median, each.highest)
        ]
        table.append((each.name, each.type, f"{each.empty:,}", f"{each.different:,}", *numbers, _short(each.example)))
    widths = [max(len(row[place]) for row in table) for place in range(len(head))]
    text = [f"{source.path}: {source.rows:,} rows, {len(columns)} columns"]
    text += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    text += ["history:"] if history else ["history: none was recorded"]
    for number, step in enumerate(history, start=1):
        inputs = ", ".join(f"{each.get('path')} ({str(each.get('hash'))[:12]})" for each in step.get("inputs", []))
        arguments = json.dumps(step.get("arguments", {}), ensure_ascii=False, default=str)
        text.append(f"  {number}. {step.get('tool')} {step.get('version')}: {arguments} from {inputs or 'no table'}")
    return text


def _short(value: object) -> str:
    if value is None:
        return ""
    words = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.info", __doc__)
    parser.add_argument("source", metavar="TABLE", help=INPUT)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return run_command(parser, argv, _info)


def _info(options: argparse.Namespace) -> None:
    with Database(memory_gb=options.memory_gb) as database:
        source = open_table(database, options.source, options)
        columns, history = describe(database, source), read_history(options.source)
        if options.json:
            facts = {"path": source.path, "rows": source.rows, "columns": [asdict(each) for each in columns]}
            print(json.dumps({**facts, "history": history}, ensure_ascii=False, default=str, indent=2))
        else:
            print("\n".join(lines(source, columns, history)))


if __name__ == "__main__":
    sys.exit(main())
