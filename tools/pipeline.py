"""Run the tools of a config one after the other: from videos to a training manifest with one command.

Run: python -m tools.pipeline configs/data/demo.py
     python -m tools.pipeline configs/data/demo.py out=outputs/other --dry-run

Each step is a command that is printed before it runs. Run it again after a stop, and it goes on; a step whose command, inputs
and files are those of last time is not repeated, unless files that it made below its --folder are gone.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import opensora
from opensora import config, files
from opensora.errors import ConfigError, DataError, OpenSoraError
from tools import runner
from tools.history import hash_input, read_history
from tools.row_source import RowSource

_ROOT = Path(__file__).resolve().parents[1]  # holds the package `tools`, which is not installed
_PARTS = ("tool", "inputs", "output")  # keys of a step that are no flags of its tool


@dataclass
class DataPipeline:
    """The keys of a config.

    videos: files, folder or list that the first step reads. out: folder of all tables. steps: each a
    dict(tool="score.motion", output="motion.csv", inputs=..., FLAG=VALUE). `inputs` is a path or several; a name of an earlier
    output means that; left out, it is the output of the step before. `{out}` and `{videos}` in inputs and flags stand for
    those keys.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    out: str = "outputs/data"
    videos: str = ""

    def fill_in(self, text: str) -> str:
        """The text with the keys that it names."""
        return text.replace("{out}", self.out).replace("{videos}", self.videos)


@dataclass(frozen=True)
class Step:
    """One command."""

    tool: str  # module
    inputs: list[str]
    output: str
    words: list[str]  # of the command line behind the module

    def key(self) -> str:
        """A hash of what decides its output: the command, the bytes of its inputs and of the files that flags name."""
        values = [word.partition("=")[2] for word in self.words if word.startswith("--")]
        read = [*self.inputs, *filter(os.path.isfile, values)]
        hashes = [_hash(path) for path in dict.fromkeys(read)]
        return files.hash_text(json.dumps([opensora.__version__, self.tool, self.words, hashes]), 16)

    @property
    def record(self) -> Path:
        """The file that keeps the key of the run that finished."""
        folder, name = os.path.split(os.path.abspath(self.output))
        return Path(folder, f".{name}.step.json")

    def is_up_to_date(self) -> bool:
        try:
            kept = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return os.path.exists(self.output) and kept == self.key()

    def missing_files(self) -> list[str]:
        """Files below its own --folder that its output names and that are not there."""
        folder = next((word.partition("=")[2] for word in self.words if word.startswith("--folder=")), None)
        if folder is None:
            return []
        below = os.path.abspath(folder) + os.sep
        with suppress(DataError):  # of an output that is damaged; the step that reads it says so
            paths = (str(row["path"]) for row in RowSource([self.output]).rows())
            return [path for path in paths if path.startswith(below) and not os.path.exists(path)]
        return []

    def keep(self) -> None:
        """Record that it has finished."""
        key = self.key()
        files.atomic_write(self.record, lambda part: files.write_json(part, key))

    def command(self) -> list[str]:
        # What an earlier run of the same command finished is kept; another command finds nothing that fits.
        resume = ["--resume"] if _resumes(self.tool) else []
        return [sys.executable, "-m", self.tool, *self.words, *resume]


def read_steps(path: str, overrides: Sequence[str]) -> list[Step]:
    """The steps of a config; ConfigError for a tool or key that is not there."""
    loaded = config.load(path, overrides, DataPipeline)
    pipeline = loaded.run
    if not pipeline.steps:
        raise ConfigError(f"{path}: key 'steps': empty; allowed: a list of dict(tool=..., output=...); add a step")
    steps: list[Step] = []
    for number, each in enumerate(pipeline.steps):
        steps.append(_step(f"{path}: steps[{number}]", each, pipeline, [step.output for step in steps]))
    return steps


def _step(where: str, each: Mapping[str, Any], pipeline: DataPipeline, before: list[str]) -> Step:
    for name in ("tool", "output"):
        if not isinstance(each.get(name), str) or not each[name]:
            raise ConfigError(f"{where}: {name} is {each.get(name)!r}; allowed: a text, such as tool='datasets.probe'")
    module = f"tools.{each['tool'].removeprefix('tools.')}"
    if not _exists(module):
        raise ConfigError(f"{where}: no tool {each['tool']!r}; allowed: a module below tools/, such as 'score.motion'")
    output = os.path.join(pipeline.out, each["output"])
    if output in before:
        raise ConfigError(f"{where}: output {each['output']!r} is that of an earlier step; choose another name")
    inputs = each.get("inputs", before[-1:])
    inputs = [inputs] if isinstance(inputs, str) else list(inputs)
    inputs = [
        path if (path := os.path.join(pipeline.out, name)) in before else pipeline.fill_in(name) for name in inputs
    ]
    flags = [
        word for name, value in each.items() if name not in _PARTS for word in _words(where, name, value, pipeline)
    ]
    return Step(module, inputs, output, [*inputs, output, *flags])


def _hash(path: str) -> str | None:
    if not os.path.exists(path):
        return None
    if path.endswith(".py"):  # a config counts with those that it is based on
        return files.hash_text(json.dumps(config.read(path)[0], sort_keys=True, default=str), 16)
    return hash_input(path)


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _words(where: str, name: str, value: Any, pipeline: DataPipeline) -> Iterator[str]:
    """A flag of a command line: True is --name, False --no-name, None nothing, a list the flag several times."""
    flag = f"--{name.replace('_', '-')}"
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(each, bool):
            yield flag if each else f"--no-{flag[2:]}"
        elif isinstance(each, (str, int, float)):
            yield f"{flag}={pipeline.fill_in(str(each))}"
        elif each is not None:
            raise ConfigError(
                f"{where}: {name} is {each!r}; allowed: text, numbers, True, False, None and lists of them"
            )


def _resumes(module: str) -> bool:
    """True for tools that the runner drives."""
    return getattr(importlib.import_module(module), "run", None) is runner.run


def run_steps(steps: Sequence[Step], dry_run: bool = False) -> None:
    """Run what is not up to date; DataError when a command fails."""
    for number, step in enumerate(steps, start=1):
        command = ["python", *step.command()[1:]]
        if step.is_up_to_date():
            missing = step.missing_files()
            if not missing:
                print(f"\n[{number}/{len(steps)}] up to date: {step.output}", flush=True)
                continue
            print(f"\n{step.output} names {len(missing):,} files that are gone, the first: {missing[0]}; made again:")
        print(f"\n[{number}/{len(steps)}] $ {subprocess.list2cmdline(command)}", flush=True)
        if dry_run:
            continue
        began = time.monotonic()
        # Tools are found wherever the pipeline was; the folder that it runs in is the user's, whose paths are relative to it.
        places = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(step.command(), env={**os.environ, "PYTHONPATH": os.pathsep.join(places)})
        if done.returncode:
            if done.returncode in (130, -2):
                raise KeyboardInterrupt
            raise DataError(
                f"{step.tool} ended with exit code {done.returncode}; its message is above; correct the cause and run the "
                "pipeline again: it goes on with this step"
            )
        step.keep()
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)


def summary(steps: Sequence[Step]) -> str:
    """A line for each step: rows that went in, and those that were bad or left out."""
    lines = [f"{'step':<28}{'rows in':>10}{'bad':>8}{'left out':>10}"]
    for step in steps:
        last = next(iter(reversed(read_history(step.output))), {})
        counts = [last.get(name) for name in ("rows", "bad", "left_out")]
        cells = ["" if count is None else f"{count:,}" for count in counts]
        lines.append(f"{step.tool.removeprefix('tools.'):<28}{cells[0]:>10}{cells[1]:>8}{cells[2]:>10}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="a config with `steps`, such as configs/data/demo.py")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the config, such as out=FOLDER")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, and do nothing")
    options = parser.parse_intermixed_args(argv)
    try:
        steps = read_steps(options.config, options.overrides)
        run_steps(steps, options.dry_run)
        if not options.dry_run:
            print(f"\n{summary(steps)}\n{steps[-1].output}")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except OpenSoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
