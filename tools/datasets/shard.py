"""Cut a table into Parquet files of nearly equal length, in the order of its rows: one folder for many machines.

Run: python -m tools.datasets.shard clips.parquet shards --shards 64

The tools read the folder as one table.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from opensora.errors import ConfigError, DataError
from tools.datasets.database import Database
from tools.datasets.table_command import INPUT, open_table, run_command, table_parser, write_result


def shard_rows(rows: int, shards: int) -> list[int]:
    """Rows of each shard; they differ by one at most."""
    return [rows * (number + 1) // shards - rows * number // shards for number in range(shards)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.shard", __doc__)
    parser.add_argument("source", metavar="IN", help=INPUT)
    parser.add_argument("output", metavar="FOLDER", help="folder to write; an older folder of shards is replaced")
    parser.add_argument("--shards", type=int, required=True, help="number of files")
    return run_command(parser, argv, _shard)


def _shard(options: argparse.Namespace) -> None:
    if os.path.splitext(options.output.rstrip(os.sep))[1] and not os.path.isdir(options.output):
        raise ConfigError(f"shard: FOLDER is {options.output!r}; allowed: a name without an ending; correct it")
    if not 1 <= options.shards <= 100_000:
        raise ConfigError(f"shard: --shards {options.shards}; allowed: 1 to 100000; correct it")
    with Database(options.output, memory_gb=options.memory_gb) as database:
        source = open_table(database, options.source, options)
        if source.rows < options.shards:
            raise DataError(
                f"{options.source}: {source.rows:,} rows do not fill {options.shards} shards; allowed: one row or more in each; "
                "lower --shards"
            )
        query = f"SELECT {source.selection(database.folder)} FROM {source.view}"
        write_result(database, query, options, shards=shard_rows(source.rows, options.shards))


if __name__ == "__main__":
    sys.exit(main())
