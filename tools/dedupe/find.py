"""Mark clips that show the same as another: tables of fingerprints in, the same rows with three more columns out.

Run: python -m tools.dedupe.find fingerprints.parquet unique.parquet --drop

duplicate_of is the path of the clip that is kept, duplicate_kind says how they are equal (exact: all pixels, near: the pictures,
semantic: the contents), and quality_rank counts the clips of a group from the best, which is kept and has 1. They are empty for a
clip without duplicates. Clips that are connected by pairs are one group. The best one has the highest number in the column
of --quality; without that column the most pixels, then the highest bit rate, then the most frames.

IN are tables and folders of tables (shards), which are searched together. OUT is one table, or a folder with one for each IN.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from opensora.errors import ConfigError, OpenSoraError
from opensora.files import expand_argument
from tools.datasets.batch_writer import require_output
from tools.dedupe.duplicates import KINDS, Settings, find_duplicates
from tools.dedupe.marked_tables import write_marked
from tools.dedupe.sources import open_sources
from tools.history import KEY, extend_history, hash_input, write_history
from tools.packages import missing_package


def find(
    inputs: Sequence[str], output: str, settings: Settings, against: Sequence[str] = (), drop: bool = False
) -> str:
    """Search the tables and write them with the columns; returns a sentence with the counts. Raises DataError."""
    sources = open_sources(against, reference=True) + open_sources(inputs)
    for message in (message for source in sources for message in source.messages):
        print(f"left out: {message}", file=sys.stderr)
    duplicates = find_duplicates(sources, settings)
    tables = [*against, *inputs]
    history = extend_history(
        "tools.dedupe.find", {**asdict(settings), "drop": drop}, tables, [hash_input(table) for table in tables]
    )
    metadata = {KEY: json.dumps(history)}
    rows = write_marked(sources, duplicates, output, drop, metadata)
    write_history(output, history)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in duplicates.count_kinds(sources).items())
    return f"{output}: {rows:,} rows; duplicates: {kinds}{', left out' if drop else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.dedupe.find", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Settings()
    parser.add_argument("inputs", nargs="+", metavar="IN", help="table, or folder of tables")
    parser.add_argument("output", metavar="OUT", help="table to write, .csv, .jsonl or .parquet, or a folder")
    parser.add_argument(
        "--by",
        action="append",
        choices=KINDS,
        help="a kind to look for; may be repeated (default: those with a column)",
    )
    parser.add_argument(
        "--distance",
        type=float,
        default=defaults.distance,
        help="bits of 64 in which near ones differ at most, in the mean over the frames (default: %(default)s)",
    )
    parser.add_argument(
        "--similarity",
        type=float,
        default=defaults.similarity,
        help="cosine of semantic ones at least (default: %(default)s)",
    )
    parser.add_argument("--vectors", default=defaults.vectors, help="column of vectors (default: %(default)s)")
    parser.add_argument("--quality", default=None, help="column of numbers, high for good clips (default: quality)")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="TABLE",
        help="table of clips that are kept whatever they are like; may be repeated",
    )
    parser.add_argument("--drop", action="store_true", help="write only the clips that are kept")
    options = parser.parse_args([expand_argument(word) for word in (sys.argv[1:] if argv is None else argv)])
    try:
        require_output(options.output)
        if not 0 <= options.distance < 32 or not 0 < options.similarity <= 1:
            raise ConfigError(
                f"find: --distance {options.distance} --similarity {options.similarity}; allowed: a distance from 0 to 31 bits "
                "and a cosine above 0 and at most 1; correct them"
            )
        settings = Settings(
            tuple(options.by or ()), options.distance, options.similarity, options.vectors, options.quality
        )
        print(find(options.inputs, options.output, settings, options.against, options.drop), file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; no output was written", file=sys.stderr)
        return 130
    except ImportError as error:
        print(missing_package(error), file=sys.stderr)
        return ConfigError.exit_code
    except OpenSoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
