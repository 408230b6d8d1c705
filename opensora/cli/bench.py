"""Measure speed and memory on this machine: `opensora bench models [--quick] [--json FILE]`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from opensora.cli.report import run_main
from opensora.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opensora bench", description=__doc__)
    parser.add_argument("what", choices=["models"], help="models: training and sampling steps, kernels, memory")
    parser.add_argument("--quick", action="store_true", help="tiny models, no memory: seconds instead of minutes")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    arguments = parser.parse_args(argv)
    return run_main(lambda: bench_command(arguments.quick, arguments.json))


def bench_command(quick: bool, file: str | None) -> int:
    """Measure and print."""
    if file is not None and not Path(file).resolve().parent.is_dir():
        raise ConfigError(f"--json: {file}: no such folder; give a file in a folder that exists")

    from rich.console import Console

    from opensora.bench.models import run, tables
    from opensora.models.layers.kernels import use_kernels
    from opensora.platforms import select

    platform = select()
    use_kernels(platform)
    found = run(platform, quick)
    console = Console(soft_wrap=True)
    for each in tables(found):
        console.print(each)
    if file is not None:
        Path(file).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0
