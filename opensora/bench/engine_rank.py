"""One rank of `opensora bench engine`: `torchrun ... -m opensora.bench.engine_rank TASK CONFIG`."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from opensora.bench.launch import tell
from opensora.bench.peak import Peak
from opensora.config import load
from opensora.datasets.loader import build_loader
from opensora.models.layers.kernels import use_kernels
from opensora.parallel import world as worlds
from opensora.parallel.collectives import gather_objects
from opensora.parallel.watchdog.process_exit import exit_process
from opensora.platforms import select
from opensora.registry import DATASETS, build
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import TrainState, train
from opensora.training.metrics import read
from opensora.types import Batch

ROUNDS = 3
WAITED = 0.01  # of a step's seconds: what counts as waiting for data


def steps(t: TrainState) -> dict[str, Any]:
    """Seconds of a step, the first one left out, and the memory of the rank that needs most."""
    t.batches = iter(list(t.batches))
    train(t)
    return {"seconds": median(_recorded(t, "seconds")[1:])}


def overhead(t: TrainState) -> dict[str, Any]:
    """The loop against forward, backward and update alone, in turns on the same batches; the best of each counts."""
    batches = list(t.batches)
    count, local = t.run.steps, t.run.micro_batches // t.world.data_size

    def bare() -> None:
        source = iter(batches)
        for _ in range(count):
            for micro in range(local):
                loss = t.task.step(t.engine.model, next(source))
                t.engine.backward(loss.loss_B.mean() / local, last=micro == local - 1)
            t.engine.step()

    def loop() -> None:
        t.batches = iter(batches)
        train(t)

    t.checkpointer = _Idle()
    times = [[_seconds(action) / count for action in (bare, loop)] for _ in range(1 + ROUNDS)][1:]
    alone, whole = (min(each) for each in zip(*times, strict=True))
    return {"bare_seconds": alone, "loop_seconds": whole, "overhead": whole / alone - 1}


def data(t: TrainState) -> dict[str, Any]:
    """Clips a process decodes in a second; the steps of a run that had to wait for theirs; the longest save."""
    dataset = build(DATASETS, t.run.dataset)
    count = 4 * len(dataset)
    loader = build_loader(dataset, seed=1, batch_size=1, micro_batches=1, steps=count)
    clips_per_second = count / _seconds(lambda: list(loader))
    waits: list[float] = []
    t.batches = _timed(t.batches, waits)
    train(t)
    seconds, saves = _recorded(t, "seconds"), [save["waited"] for save in _recorded(t, "save")]
    local = t.run.micro_batches // t.world.data_size
    late = [sum(waits[step * local : (step + 1) * local]) > WAITED * whole for step, whole in enumerate(seconds)]
    newest = max((Path(t.run.run_dir) / "checkpoints").glob("step-*"))
    return {
        "clips_per_second": clips_per_second,
        "clip": "x".join(map(str, (dataset.num_frames, *dataset.image_size))),
        "waited": sum(late[1:]),  # the first step always waits: its loader process starts then
        "steps": len(late) - 1,
        "step_seconds": median(seconds),
        "save_pause_seconds": max(saves),
        "checkpoint_bytes": sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()),
    }


def _recorded(t: TrainState, key: str) -> list[Any]:
    """The values that the run's log has under `key`."""
    return [record[key] for record in read(Path(t.run.run_dir) / "metrics.jsonl") if key in record]


class _Idle:
    """Keeps nothing."""

    def save(self, step: int, bad_rows: list[str]) -> float:
        return 0.0

    def finish(self) -> None:
        pass

    def describe_latest(self) -> str:
        return "none"


def _timed(batches: Iterator[Batch], waits: list[float]) -> Iterator[Batch]:
    """The same batches; how long each was waited for is added to `waits`."""
    while True:
        start = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        waits.append(time.perf_counter() - start)
        yield batch


def _seconds(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


TASKS = {"steps": steps, "overhead": overhead, "data": data}


def main(argv: list[str]) -> int:
    task, config = argv
    run = load(config, [], TrainRun).run
    platform = select()
    use_kernels(platform)
    run = replace(run, dtype=platform.choose_dtype(run.dtype))
    world = worlds.start(platform, run.timeout_seconds, run.sp_size or 1)
    torch.set_num_threads(1)  # alike on one rank and on two
    peak = Peak(platform)
    t = build_training(run, world, config)
    found = TASKS[task](t)
    found["peak_bytes"] = max(gather_objects(peak.added_bytes()))
    found["parameters"] = sum(p.numel() for p in t.task.trained.parameters())
    t.metrics.close()
    if world.is_main:
        tell(found)
    worlds.stop()
    return 0


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
