"""Draw rows at random, in the order of the table: the same ones for the same table and seed.

Run: python -m tools.datasets.sample clips.parquet some.parquet --rows 1000
     python -m tools.datasets.sample clips.parquet some.parquet --share 0.01 --seed 7
"""

import argparse
import sys
from collections.abc import Sequence

from opensora.errors import ConfigError, DataError
from tools.datasets.database import Database, Source
from tools.datasets.draw import draw
from tools.datasets.table_command import (
    INPUT,
    OUTPUT,
    open_table,
    require_outputs,
    run_command,
    table_parser,
    write_result,
)


def sample(database: Database, source: Source, rows: int, seed: int) -> None:
    """Make the table `kept` with a column `keep` for each row of the source, true for `rows` of them."""
    database.execute(
        f"CREATE TEMP TABLE drawn AS SELECT n FROM range({source.rows}) every(n) ORDER BY {draw('n', seed)}, n LIMIT {rows}"
    )
    database.execute(
        f"CREATE TEMP TABLE kept AS SELECT drawn.n IS NOT NULL AS keep FROM range({source.rows}) every(n) "
        "LEFT JOIN drawn USING (n) ORDER BY every.n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.sample", __doc__)
    parser.add_argument("source", metavar="IN", help=INPUT)
    parser.add_argument("output", metavar="OUT", help=OUTPUT)
    parser.add_argument("--rows", type=int, help="rows to draw; all, where there are fewer")
    parser.add_argument("--share", type=float, help="of the rows to draw, above 0 and up to 1")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    return run_command(parser, argv, _sample)


def _sample(options: argparse.Namespace) -> None:
    require_outputs(options.output)
    if (options.rows is None) == (options.share is None):
        raise ConfigError("sample: allowed: --rows or --share; set one of them")
    if (options.rows is not None and options.rows < 1) or (options.share is not None and not 0 < options.share <= 1):
        raise ConfigError(
            f"sample: --rows {options.rows} --share {options.share}; allowed: 1 row or more, a share above 0 and up to 1"
        )
    with Database(options.output, memory_gb=options.memory_gb) as database:
        source = open_table(database, options.source, options)
        rows = options.rows if options.rows is not None else round(options.share * source.rows)
        if min(rows, source.rows) < 1:
            raise DataError(
                f"{options.source}: no row is drawn of {source.rows:,}; at least one is needed; raise --share"
            )
        sample(database, source, rows, options.seed)
        selection = source.selection(database.folder, "t")
        write_result(database, f"SELECT {selection} FROM {source.view} t POSITIONAL JOIN kept WHERE kept.keep", options)


if __name__ == "__main__":
    sys.exit(main())
