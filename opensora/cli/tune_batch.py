"""Find micro-batch sizes for bucket_config: `opensora tune-batch CONFIG OUT_CONFIG step_seconds=N`.

It runs forward and backward of the config's model on noise for growing batch sizes, from the largest bucket down, and
writes OUT_CONFIG: CONFIG with the new bucket_config. Run it on a device of the kind you train on. Of the data it reads the
manifest alone, if it is there: no batch gets larger than the rows of its bucket allow.
Settings of CONFIG (key=value) go into OUT_CONFIG too. Other keys:
  step_seconds=N   goal for a micro-batch, forward and backward
  memory_gb=M      limit in GB (10^9 bytes) for the estimate of `opensora check`; default: 0.9 of the device
  world=N          ranks that will train, among which ZeRO spreads the optimizer; default 1
"""

import argparse
import math
import os
import pprint
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.cli.command_parser import CommandParser
from opensora.cli.run_main import run_main
from opensora.config import load, parse_override
from opensora.errors import ConfigError, DataError
from opensora.progress_bar import ProgressBar
from opensora.schema import TrainRun

if TYPE_CHECKING:
    from opensora.datasets.buckets import Buckets
    from opensora.planning.batch_size_search import BucketResult

DEFAULT_SHARE = 0.9  # of the device's memory
TUNE_KEYS = ("step_seconds", "memory_gb", "world")  # keys of the command line that are not keys of the config


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(
        prog="opensora tune-batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="a training config with bucket_config")
    parser.add_argument("out", metavar="OUT_CONFIG", help="the .py file to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="step_seconds=N and settings of CONFIG")
    arguments = parser.read(argv)
    return run_main(lambda: tune_command(arguments.config, arguments.out, arguments.overrides))


def tune_command(config: str, out: str, overrides: Sequence[str]) -> int:
    """Search, print the batch sizes, write the config; returns the exit code."""
    options = dict(parse_override(each) for each in overrides if each.partition("=")[0] in TUNE_KEYS)
    settings = [each for each in overrides if each.partition("=")[0] not in TUNE_KEYS]
    loaded = load(config, settings, TrainRun)
    run = loaded.run
    if run.bucket_config is None or run.task != "diffusion":
        raise ConfigError(
            f"{config}: tune-batch searches the batch sizes of 'bucket_config' for task 'diffusion'; found "
            f"bucket_config={run.bucket_config}, task={run.task!r}; set bucket_config, with any batch sizes"
        )
    goal, world = _positive(options, "step_seconds", None), _positive(options, "world", 1)
    if Path(out).suffix != ".py" or Path(out).resolve() == Path(config).resolve():
        raise ConfigError(f"command line: OUT_CONFIG {out}: allowed: another file than CONFIG that ends in .py")

    from rich.console import Console

    from opensora.models.frame_counts import require_frame_counts
    from opensora.planning.batch_size_search import (
        StepTimer,
        search_batch_sizes,
        step_bytes,
        updated_bucket_config,
    )
    from opensora.platforms import select
    from opensora.training.checkpoint import resolve_part
    from opensora.training.clip_plan import bucket_lengths, build_buckets

    platform = select()
    platform.set_numerics(run.tf32, run.deterministic)
    memory = int(1e9 * _positive(options, "memory_gb", DEFAULT_SHARE * platform.memory_bytes() / 1e9))
    run = replace(run, dtype=platform.choose_dtype(run.dtype), vae=resolve_part(run.vae))
    buckets = build_buckets(run, config)
    assert buckets is not None
    assert run.bucket_config is not None
    most = _most_clips(run, buckets)
    size = max((buckets.size(each) for each in buckets.all if buckets.takes(each)), key=math.prod)
    timer = StepTimer(run, size, platform)
    require_frame_counts(timer.task.codec.vae, bucket_lengths(buckets), config)
    pairs = dict.fromkeys((each.resolution, each.num_frames) for each in buckets.all if buckets.takes(each))
    with ProgressBar("buckets", len(pairs), lines=None) as bar:

        def report(result: "BucketResult") -> None:
            batch = (
                f"{result.resolution}, {result.num_frames} frames: batch {result.batch_size}, {result.seconds:.3g} s"
            )
            bar.update(bar.completed + 1, line=f"{batch} ({int(bar.completed) + 1} of {len(pairs)} buckets)")

        results = search_batch_sizes(
            buckets, timer, step_bytes(run, int(world)), step_seconds=goal, memory=memory, most=most, report=report
        )
    if not any(result.batch_size for result in results):
        raise ConfigError(
            f"{config}: not one clip of any bucket fits into {memory / 1e9:.1f} GB; allowed: a larger memory_gb; use smaller "
            "buckets, grad_checkpoint=True, another plugin, or more ranks (world=N)"
        )
    Console(soft_wrap=True, markup=False).print(_table(results, goal, memory))
    changed = {key: getattr(loaded.run, key) for key in dict.fromkeys(re.split("[.=]", each)[0] for each in settings)}
    changed["bucket_config"] = updated_bucket_config(run.bucket_config, results)
    _write(out, config, platform.device_name(), goal, changed, loaded.written)
    load(out, [], TrainRun)
    print(f"written: {out}")
    return 0


def _most_clips(run: TrainRun, buckets: "Buckets") -> dict[tuple[str, int], int] | None:
    """The largest batch size of each length that the rows allow; None, with a line that says so, where none can be read."""
    from opensora.planning.batch_size_search import most_clips
    from opensora.registry import DATASETS, build

    try:
        dataset = build(DATASETS, run.dataset)
        return most_clips(dataset, buckets, run.seed, run.micro_batches) if hasattr(dataset, "sizes") else None
    except DataError as error:
        print(f"rows: not read, so a batch may be larger than the rows of its bucket allow ({error})", file=sys.stderr)
        return None


def _positive(options: dict[str, Any], name: str, default: float | None) -> float:
    value = options.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        problem = "missing" if value is None else f"found {value!r}"
        raise ConfigError(f"command line: key '{name}': {problem}; allowed: a number above 0; add {name}=N")
    return value


def _table(results: Sequence[Any], goal: float, memory: int) -> Any:
    from rich.table import Table

    columns = ("resolution", "frames", "size", "batch before", "batch", "seconds", "GB (estimate)", "note")
    table = Table(*columns, title=f"at most {goal:g} s and {memory / 1e9:.1f} GB")
    for result in results:
        note = "one clip alone is slower than the goal" if result.too_slow else ""
        if result.most is not None:
            note = "not more: the bucket has no rows for it"
        if not result.batch_size:
            note = "does not fit into memory: never chosen"
        table.add_row(
            result.resolution,
            str(result.num_frames),
            "x".join(map(str, result.size[1:])),
            str(result.config_batch_size),
            str(result.batch_size),
            f"{result.seconds:.3g}" if result.batch_size else "",
            f"{result.bytes / 1e9:.2f}",
            note,
        )
    return table


def _write(out: str, config: str, device: str, goal: float, changed: dict[str, Any], written: frozenset[str]) -> None:
    """Write a config that inherits from `config`.

    changed: keys with new values. written: keys that `config` itself sets; a dict replaces its value whole.
    """
    base = os.path.relpath(Path(config).resolve(), Path(out).resolve().parent)
    lines = ""
    for key, value in changed.items():
        replacement = {"_delete_": True, **value} if isinstance(value, dict) and key in written else value
        lines += f"{key} = {pprint.pformat(replacement, width=110, sort_dicts=False)}\n"
    head = f"Batch sizes for steps of {goal:g} s, by `opensora tune-batch` on {device}."
    text = f'"""{head}\n\nRun:    opensora train {out}\n"""\n\n_base_ = [{base!r}]\n{lines}'
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
