"""A page in the browser to look through the clips of a manifest: filter, sort, mark good or bad, correct captions.

Run: python -m tools.browse clips.parquet
     python -m tools.browse clips.csv --port 8000

Only this machine can reach the page; from another one: ssh -L 7861:127.0.0.1:7861 MACHINE. Changes are kept at once in a
hidden file next to the manifest, and written into it with its history by the button or Ctrl+S: the column `mark` holds good or
bad, the column `text` the captions.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence

from opensora.errors import ConfigError
from tools.browse.marked_manifest import MarkedManifest
from tools.datasets.table_command import add_switch, run_command
from tools.packages import require_packages


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.browse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="MANIFEST", help="a table with a column path: .csv, .parquet or .jsonl")
    parser.add_argument("--port", type=int, default=7861, help="0: a free one (default: %(default)s)")
    parser.add_argument("--memory-gb", type=float, default=2.0, help="of DuckDB (default: %(default)s)")
    parser.add_argument("--page-size", type=int, default=12, help="clips side by side (default: %(default)s)")
    add_switch(parser, "--discard", "forget the changes that were not saved")
    return run_command(parser, argv, _browse)


def _browse(options: argparse.Namespace) -> None:
    if not 0 <= options.port <= 65535 or not 1 <= options.page_size <= 200:
        raise ConfigError(
            f"browse: --port {options.port} --page-size {options.page_size}; allowed: ports 0 to 65535, 1 to 200 clips"
        )
    with (
        tempfile.TemporaryDirectory(prefix="opensora-browse-") as folder,
        MarkedManifest(options.source, memory_gb=options.memory_gb, discard=options.discard) as manifest,
    ):
        require_packages(["gradio"])
        from opensora.web.serve import serve
        from tools.browse.server import build_app

        if manifest.resumed:
            print(f"{manifest.resumed} changes of before are not saved yet", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            serve(build_app(manifest, folder, options.page_size), options.port)
        if manifest.changed:
            print(f"{manifest.changed} changes are not saved; start again to go on with them", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
