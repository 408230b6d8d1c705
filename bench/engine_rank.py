"""One rank of `opensora bench engine`: `torchrun ... -m bench.engine_rank TASK CONFIG`."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.peak_memory import PeakMemory
from bench.subprocesses import send_result
from opensora.config import load
from opensora.datasets.loader import build_loader
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
WAITED = 0.01  # a step that waits for data longer than this share of its seconds counts as late


def steps(state: TrainState) -> dict[str, Any]:
    """Median seconds of a step without the first one."""
    state.batches = iter(list(state.batches))
    train(state)
    return {"seconds": median(_recorded(state, "seconds")[1:])}


def overhead(state: TrainState) -> dict[str, Any]:
    """Time the loop against bare forward, backward and update, in turns on the same batches; the fastest of each counts."""
    batches = list(state.batches)
    count, local = state.run.steps, state.run.micro_batches // state.world.data_size

    def bare_steps() -> None:
        source = iter(batches)
        for _ in range(count):
            for micro in range(local):
                with state.engine.accumulating(last=micro == local - 1):
                    loss = state.task.loss(state.engine.model, next(source))
                    state.engine.backward(loss.loss_B.mean() / local)
            state.engine.grad_norm()
            state.engine.update()

    def loop() -> None:
        state.batches = iter(batches)
        train(state)

    state.checkpointer = _NoCheckpoints()
    times = [[_seconds(action) / count for action in (bare_steps, loop)] for _ in range(1 + ROUNDS)][1:]
    bare, loop_seconds = (min(column) for column in zip(*times, strict=True))
    return {"bare_seconds": bare, "loop_seconds": loop_seconds, "overhead": loop_seconds / bare - 1}


def data(state: TrainState) -> dict[str, Any]:
    """Clips that one process decodes per second, steps that waited for data, and the longest pause of a save."""
    dataset = build(DATASETS, state.run.dataset)
    count = 4 * len(dataset)
    loader = build_loader(dataset, seed=1, batch_size=1, micro_batches=1, steps=count)
    clips_per_second = count / _seconds(lambda: list(loader))
    waits: list[float] = []
    state.batches = _timed(state.batches, waits)
    train(state)
    seconds, saves = _recorded(state, "seconds"), [save["waited"] for save in _recorded(state, "save")]
    local = state.run.micro_batches // state.world.data_size
    late = [sum(waits[step * local : (step + 1) * local]) > WAITED * duration for step, duration in enumerate(seconds)]
    newest = max((Path(state.run.run_dir) / "checkpoints").glob("step-*"))
    return {
        "clips_per_second": clips_per_second,
        "clip": "x".join(map(str, (dataset.num_frames, *dataset.image_size))),
        "waited": sum(late[1:]),  # the first step always waits: its loader process starts then
        "steps": len(late) - 1,
        "step_seconds": median(seconds),
        "save_pause_seconds": max(saves),
        "checkpoint_bytes": sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()),
    }


def _recorded(state: TrainState, key: str) -> list[Any]:
    """The values of `key` in the run's metrics."""
    return [record[key] for record in read(Path(state.run.run_dir) / "metrics.jsonl") if key in record]


class _NoCheckpoints:
    """A checkpointer that saves nothing."""

    def save(self, step: int, bad_rows: list[str]) -> float:
        return 0.0

    def finish(self) -> None:
        pass

    def describe_latest(self) -> str:
        return "none"


def _timed(batches: Iterator[Batch], waits: list[float]) -> Iterator[Batch]:
    """Pass batches on and append the seconds that each took to arrive to `waits`."""
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
    run = replace(run, dtype=platform.choose_dtype(run.dtype))
    world = worlds.init(platform, run.timeout_seconds, run.sp_size or 1)
    torch.set_num_threads(1)  # alike on one rank and on two
    peak = PeakMemory(platform)
    state = build_training(run, world, config)
    result = TASKS[task](state)
    result["peak_bytes"] = max(gather_objects(peak.added_bytes()))
    result["parameters"] = sum(p.numel() for p in state.task.trained.parameters())
    state.metrics.close()
    if world.is_main:
        send_result(result)
    worlds.shutdown()
    return 0


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
