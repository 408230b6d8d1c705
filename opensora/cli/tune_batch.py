"""Find micro-batch sizes for bucket_config: `opensora tune-batch CONFIG OUT_CONFIG step_seconds=N`.

Runs forward and backward of the config's model on noise for growing batch sizes, from the largest bucket down, and writes
OUT_CONFIG: CONFIG with the bucket_config found. Run it on one of the devices you train on; no data is read. Besides
key=value settings of CONFIG, which OUT_CONFIG has as well:
  step_seconds=N   a micro-batch may take so long, forward and backward
  memory_gb=M      it may need so many GB (10^9 bytes), by the estimate of `opensora check`; default: 0.9 of the device
  world=N          ranks that will train, among which ZeRO spreads the optimizer; default 1
"""

import argparse
import math
import os
import pprint
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opensora.cli.run_main import run_main
from opensora.config import load, parse_override
from opensora.errors import ConfigError
from opensora.schema import TrainRun

SHARE = 0.9  # of the device's memory, by default
OWN = ("step_seconds", "memory_gb", "world")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="opensora tune-batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="a training config with bucket_config")
    parser.add_argument("out", metavar="OUT_CONFIG", help="the .py file to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="step_seconds=N and settings of CONFIG")
    arguments = parser.parse_args(argv)
    return run_main(lambda: tune_command(arguments.config, arguments.out, arguments.overrides))


def tune_command(config: str, out: str, overrides: Sequence[str]) -> int:
    """Measure, print what was found, write the config; returns the exit code."""
    own = dict(parse_override(each) for each in overrides if each.partition("=")[0] in OWN)
    changes = [each for each in overrides if each.partition("=")[0] not in OWN]
    loaded = load(config, changes, TrainRun)
    run = loaded.run
    if run.bucket_config is None or run.task != "diffusion":
        raise ConfigError(
            f"{config}: tune-batch finds the batch sizes of 'bucket_config' for task 'diffusion'; found "
            f"bucket_config={run.bucket_config}, task={run.task!r}; set bucket_config, with any batch sizes"
        )
    goal, world = _positive(own, "step_seconds", None), _positive(own, "world", 1)
    if Path(out).suffix != ".py" or Path(out).resolve() == Path(config).resolve():
        raise ConfigError(f"command line: OUT_CONFIG {out}: allowed: another file than CONFIG that ends in .py")

    from rich.console import Console

    from opensora.cli.session import start_platform
    from opensora.training.checkpoint import resolve_part
    from opensora.training.clip_plan import build_buckets
    from opensora.training.tune import StepTimer, step_bytes, tune, tuned_config

    platform = start_platform()
    memory = int(1e9 * _positive(own, "memory_gb", SHARE * platform.memory_bytes() / 1e9))
    run = replace(run, dtype=platform.choose_dtype(run.dtype), vae=resolve_part(run.vae))
    buckets = build_buckets(run, config)
    assert buckets is not None
    assert run.bucket_config is not None
    size = max((buckets.size(each) for each in buckets.all if buckets.takes(each)), key=math.prod)
    timer = StepTimer(run, size, platform)
    lines = tune(buckets, timer, step_bytes(run, int(world)), step_seconds=goal, memory=memory)
    if not any(line.batch_size for line in lines):
        raise ConfigError(
            f"{config}: not one clip of any bucket fits into {memory / 1e9:.1f} GB; allowed: a larger memory_gb; use smaller "
            "buckets, grad_checkpoint=True, another plugin, or more ranks (world=N)"
        )
    Console(soft_wrap=True).print(_table(lines, goal, memory))
    changed = {key: getattr(loaded.run, key) for key in dict.fromkeys(re.split("[.=]", each)[0] for each in changes)}
    changed["bucket_config"] = tuned_config(run.bucket_config, lines)
    _write(out, config, platform.device_name(), goal, changed, loaded.written)
    load(out, [], TrainRun)
    print(f"written: {out}")
    return 0


def _positive(own: dict[str, Any], name: str, default: float | None) -> float:
    value = own.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        found = "missing" if value is None else f"found {value!r}"
        raise ConfigError(f"command line: key '{name}': {found}; allowed: a number above 0; add {name}=N")
    return value


def _table(lines: Sequence[Any], goal: float, memory: int) -> Any:
    from rich.table import Table

    table = Table(
        "resolution", "frames", "size", "batch before", "batch", "seconds", "GB (estimate)", "",
        title=f"at most {goal:g} s and {memory / 1e9:.1f} GB",
    )  # fmt: skip
    for line in lines:
        remark = "slower than the goal by itself" if line.too_slow else ""
        if not line.batch_size:
            remark = "does not fit into memory: never chosen"
        table.add_row(
            line.resolution,
            str(line.num_frames),
            "x".join(map(str, line.size[1:])),
            str(line.before),
            str(line.batch_size),
            f"{line.seconds:.3g}" if line.batch_size else "",
            f"{line.bytes / 1e9:.2f}",
            remark,
        )
    return table


def _write(out: str, config: str, device: str, goal: float, changed: dict[str, Any], written: frozenset[str]) -> None:
    """changed: keys of CONFIG that are others. written: those that CONFIG sets, with whose values none is to be merged."""
    base = os.path.relpath(Path(config).resolve(), Path(out).resolve().parent)
    lines = ""
    for key, value in changed.items():
        whole = {"_delete_": True, **value} if isinstance(value, dict) and key in written else value
        lines += f"{key} = {pprint.pformat(whole, width=110, sort_dicts=False)}\n"
    head = f"Batch sizes for steps of {goal:g} s, found by `opensora tune-batch` on {device}."
    text = f'"""{head}\n\nRun:    opensora train {out}\n"""\n\n_base_ = [{base!r}]\n{lines}'
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
