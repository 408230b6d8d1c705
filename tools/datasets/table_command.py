"""The command line that tools on whole tables share."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from opensora.errors import ConfigError, OpenSoraError
from opensora.files import expand_argument
from tools.datasets.batch_writer import require_output
from tools.datasets.database import Database, Source
from tools.history import extend_history, hash_input, history_metadata, write_history

INPUT = "table (.csv, .parquet, .jsonl) or a folder of its shards"
OUTPUT = "table to write: .csv, .parquet, .jsonl, or a name without an ending for a folder of Parquet shards"

Work = Callable[[argparse.Namespace], int | None]


def table_parser(tool: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that every tool on tables has. tool: its name in the history of what it writes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {tool}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(tool=tool)
    parser.add_argument(
        "--memory-gb",
        type=float,
        default=2.0,
        help="of DuckDB; what needs more goes to the disk (default: %(default)s)",
    )
    add_switch(parser, "--skip-damaged", "leave out the rows that cannot be read, and name them")
    return parser


def add_switch(parser: argparse.ArgumentParser, flag: str, help_text: str, default: bool = False) -> None:
    """Add --FLAG and --no-FLAG."""
    shown = f"{help_text} (default: {'on' if default else 'off'})"
    parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=shown)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, work: Work) -> int:
    """Parse the words, run `work`, and return the exit code; an error that a user can act on is a sentence."""
    options = parser.parse_args([expand_argument(word) for word in (sys.argv[1:] if argv is None else argv)])
    try:
        return work(options) or 0
    except KeyboardInterrupt:
        print("stopped; no output was written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OpenSoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def open_table(database: Database, path: str, options: argparse.Namespace, view: str = "manifest") -> Source:
    """Open an input, and name the rows that --skip-damaged leaves out."""
    source = database.open(path, view, skip_damaged=options.skip_damaged)
    for sentence in source.damaged:
        print(f"skipped {sentence}", file=sys.stderr)
    if source.damaged_rows > len(source.damaged):
        print(f"skipped {source.damaged_rows - len(source.damaged)} more rows of {path}", file=sys.stderr)
    return source


def require_outputs(*paths: str) -> None:
    """Raise ConfigError for an output that is no name of a table, and for two that are one file."""
    for path in paths:
        require_output(path)
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise ConfigError(f"two outputs are one file, {paths[0]}; name two files")


def write_result(
    database: Database,
    query: str,
    options: argparse.Namespace,
    *,
    output: str = "",
    shards: Sequence[int] | None = None,
) -> int:
    """Write the rows of a query with their history, and say how many there are. output: where it is not `options.output`."""
    target = output or options.output
    rows = sum(source.rows for source in database.sources)
    bad = sum(source.damaged_rows for source in database.sources)
    history = history_of(options, [source.path for source in database.sources], rows=rows, bad=bad)
    written = database.write(query, target, metadata=history_metadata(target, history), shards=shards)
    write_history(target, history)
    print(f"{target}: {written:,} rows", file=sys.stderr)
    return written


def history_of(options: argparse.Namespace, inputs: Sequence[str], **counts: int) -> list[dict[str, Any]]:
    """The steps that made the inputs, and this command. counts: rows, bad."""
    arguments = {key: value for key, value in vars(options).items() if key not in ("memory_gb", "tool")}
    return extend_history(options.tool, arguments, inputs, [hash_input(path) for path in inputs], **counts)
