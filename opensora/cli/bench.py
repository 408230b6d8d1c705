"""Measure on this machine: `opensora bench WHAT [--quick] [--json FILE]`.

Every WHAT is a module of `opensora.bench` with `run(platform, quick)`, the numbers, and `tables(numbers)`, for people.
"""

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from opensora.cli.run_main import run_main
from opensora.errors import ConfigError

BENCHES = {
    "buckets": "ten million manifest rows to a plan of optimizer steps by buckets: seconds and memory",
    "engine": "training under each plugin on one rank and on two; the loop, the loader, a save",
    "faults": "kill -9 at random moments of training runs: what is lost, and what changes",
    "models": "training and sampling steps, kernels, memory",
    "tokens": "a training step of a million tokens of one sample, by one rank and shared by two",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opensora bench", description=__doc__)
    listed = "; ".join(f"{name}: {purpose}" for name, purpose in BENCHES.items())
    parser.add_argument("what", choices=list(BENCHES), help=listed)
    parser.add_argument("--quick", action="store_true", help="small cases for a look: seconds instead of minutes")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    arguments = parser.parse_args(argv)
    return run_main(lambda: bench_command(arguments.what, arguments.quick, arguments.json))


def bench_command(what: str, quick: bool, file: str | None) -> int:
    """Measure and print."""
    if file is not None and not Path(file).resolve().parent.is_dir():
        raise ConfigError(f"--json: {file}: no such folder; give a file in a folder that exists")

    from rich.console import Console

    from opensora.models.layers.kernels import use_kernels
    from opensora.platforms import select

    platform = select()
    use_kernels(platform)
    bench = importlib.import_module(f"opensora.bench.{what}")
    found = bench.run(platform, quick)
    console = Console(soft_wrap=True)
    for each in bench.tables(found):
        console.print(each)
    if file is not None:
        Path(file).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0
