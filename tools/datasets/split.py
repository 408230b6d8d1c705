"""Split a table into rows for training and for validation, so that clips of one film stay together.

Run: python -m tools.datasets.split clips.parquet train.parquet --validation validation.parquet --by source_path

A row's side depends on its value of --by and the seed alone: further rows change nothing for those before, and the share is
met on average over the films.
"""

import argparse
import sys
from collections.abc import Sequence

from opensora.datasets.table_writer import table_folder
from opensora.errors import ConfigError, DataError
from tools.datasets.database import Database, Source
from tools.datasets.draw import RANGE, draw
from tools.datasets.moved_path import name
from tools.datasets.table_command import (
    INPUT,
    OUTPUT,
    open_table,
    require_outputs,
    run_command,
    table_parser,
    write_result,
)

FILM = ("source_path", "video", "path")  # columns that name a film, the best first


def film_column(source: Source) -> str:
    """The column that names the film of a row. Raises ConfigError when there is none."""
    column = next((each for each in FILM if each in source.types), None)
    if column is None:
        raise ConfigError(
            f"{source.path}: no column {', '.join(FILM)}; columns: {', '.join(source.columns)}; name one with --by"
        )
    return column


def is_validation(source: Source, column: str, share: float, seed: int) -> str:
    """SQL that is true for the rows of validation; a row without a value goes by its path."""
    value = name(column)
    if column != "path" and source.types.get("path") is not None:
        value = f"coalesce(CAST({value} AS VARCHAR), CAST({name('path')} AS VARCHAR), '')"
    return f"coalesce({draw(value, seed)} < {int(share * RANGE)}, false)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.split", __doc__)
    parser.add_argument("source", metavar="IN", help=INPUT)
    parser.add_argument("train", metavar="TRAIN", help=OUTPUT)
    parser.add_argument("--validation", metavar="TABLE", required=True, help="as TRAIN")
    parser.add_argument("--share", type=float, default=0.02, help="of the films for validation (default: %(default)s)")
    parser.add_argument("--by", metavar="COLUMN", help=f"names the film (default: the first of {', '.join(FILM)})")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    return run_command(parser, argv, _split)


def _split(options: argparse.Namespace) -> None:
    require_outputs(options.train, options.validation)
    if not 0 < options.share < 1:
        raise ConfigError(f"split: --share {options.share:g}; allowed: above 0 and below 1; correct it")
    with Database(options.train, memory_gb=options.memory_gb) as database:
        source = open_table(database, options.source, options)
        column = options.by or film_column(source)
        source.require(column)
        test = is_validation(source, column, options.share, options.seed)
        [films, held_back, rows] = database.row(
            f"SELECT count(DISTINCT {name(column)}), count(DISTINCT {name(column)}) FILTER (WHERE {test}), "
            f"count(*) FILTER (WHERE {test}) FROM {source.view}"
        )
        if not 0 < rows < source.rows:
            empty = "validation" if rows == 0 else "training"
            raise DataError(
                f"{options.source}: {empty} has no row of {source.rows:,}: column {column!r} has {films:,} different values; "
                "allowed: rows on both sides; change --share, --seed or --by"
            )
        print(f"by {column}: {films - held_back:,} films for training, {held_back:,} for validation", file=sys.stderr)
        for output, wanted in ((options.train, f"NOT ({test})"), (options.validation, test)):
            selection = source.selection(table_folder(output))
            write_result(database, f"SELECT {selection} FROM {source.view} WHERE {wanted}", options, output=output)


if __name__ == "__main__":
    sys.exit(main())
