"""Measure on this machine: `opensora bench WHAT [--quick] [--json FILE]`.

Every WHAT is a module of the folder bench/ of the checkout, next to opensora/. The module has `run(platform, quick)`,
which measures, and `tables(results)`, which shows the numbers to people.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from opensora.cli.run_main import run_main
from opensora.errors import ConfigError

BENCHES = {
    "buckets": "ten million manifest rows to a plan of optimizer steps by buckets: seconds and memory",
    "data": "the data tools: scene cuts, seeks, workers, rows and tables of ten million rows, duplicates",
    "encoder": "the causal autoencoder's encoder as in 1.0 and in 1.1, at 33 to 257 frames: memory and seconds",
    "engine": "training under each plugin on one rank and on two; the loop, the loader, a save",
    "faults": "kill -9 at random moments of training runs: what is lost, and what changes",
    "models": "training and sampling steps, kernels, memory",
    "sample": "videos: stages, shortcuts and their error, few steps, batches; trains on MovingShapes first",
    "tokens": "a training step of a million tokens of one sample, by one rank and shared by two",
}
MODULES = {"faults": "crash_resume", "tokens": "long_sequence"}  # files of bench/ that are not named after their WHAT
CHECKOUT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opensora bench", description=__doc__)
    listed = "; ".join(f"{name}: {purpose}" for name, purpose in BENCHES.items())
    parser.add_argument("what", choices=list(BENCHES), help=listed)
    parser.add_argument("--quick", action="store_true", help="small cases for a look: seconds instead of minutes")
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file as well")
    arguments = parser.parse_args(argv)
    return run_main(lambda: bench_command(arguments.what, arguments.quick, arguments.json))


def bench_command(what: str, quick: bool, file: str | None) -> int:
    """Measure and print."""
    if file is not None and not Path(file).resolve().parent.is_dir():
        raise ConfigError(f"--json: {file}: no such folder; give a file in a folder that exists")
    bench = import_bench(what)

    from rich.console import Console

    from opensora.platforms import select

    platform = select()
    results = bench.run(platform, quick)
    console = Console(soft_wrap=True)
    for table in bench.tables(results):
        console.print(table)
    if file is not None:
        Path(file).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def import_bench(what: str, checkout: Path = CHECKOUT) -> ModuleType:
    """Import the module of `what` from the checkout; ConfigError where the package is installed without one."""
    name = MODULES.get(what, what)
    if not (checkout / "bench" / f"{name}.py").is_file():
        raise ConfigError(
            f"opensora bench: found no bench/{name}.py in {checkout}; allowed: an installation from the source checkout, "
            "which has that folder; clone the repository and run `pip install -e .` in it"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))  # an editable install finds opensora/ alone
    return importlib.import_module(f"bench.{name}")
