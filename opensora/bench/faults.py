"""`opensora bench faults`: kill -9 at random moments of a run, then the same start again: what is lost, and what changes.

A start is a fork of this process, which has imported everything, so that it costs what a run costs without the imports.
"""

import json
import multiprocessing
import os
import random
import re
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.table import Table

from opensora.bench.engine import TINY_VAE, captions
from opensora.errors import OpenSoraError
from opensora.platforms import Platform

STEPS, SAVE_EVERY = 16, 2
LONGEST = 300  # seconds for a run that nobody kills
SEED = 1


@dataclass
class Counts:
    """What became of the runs."""

    ranks: int
    kills: int = 0
    while_starting: int = 0  # before the first step of that start
    while_saving: int = 0  # a half-written checkpoint lay there
    starts_after_a_kill: int = 0
    failed_to_resume: int = 0
    damaged_checkpoints: int = 0  # found by a start that resumed
    saved_steps_lost: int = 0  # starts that resumed from a step before one that was reported as saved
    most_steps_lost: int = 0
    most_steps_allowed: int = 2 * SAVE_EVERY  # the interval, and that of the save that was being written
    runs_finished: int = 0
    runs_identical: int = 0  # every logged number and the final weights, bit for bit
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class End:
    """How one start ended."""

    codes: list[int | None]  # per rank; -9 for killed
    log: str

    @property
    def resumed(self) -> int | None:
        """The step it went on from; None when it was killed before that was decided."""
        found = re.search(r"resumed from \S+ at step (\d+)", self.log)
        if found is None:
            return 0 if re.search(r" step \d+/", self.log) else None
        return int(found[1])

    @property
    def saved(self) -> int:
        return max((int(step) for step in re.findall(r"step (\d+) saved: ", self.log)), default=0)


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """50 kills, some of them on two ranks at once; 5 with `quick`."""
    shares = {1: 3, 2: 2} if quick else {1: 30, 2: 20}
    with tempfile.TemporaryDirectory(prefix="opensora-bench-") as folder:
        found = [measure(Path(folder), ranks, kills) for ranks, kills in shares.items()]
    return {"steps": STEPS, "save_every": SAVE_EVERY, "counts": [asdict(each) for each in found]}


def tables(found: dict[str, Any]) -> list[Table]:
    title = f"kill -9 at random moments of runs of {found['steps']} steps that save every {found['save_every']}"
    table = Table("", *(f"{each['ranks']} rank(s)" for each in found["counts"]), title=title)
    for name in list(found["counts"][0])[1:]:
        if name != "failures":
            table.add_row(name.replace("_", " "), *(str(each[name]) for each in found["counts"]))
    return [table]


def measure(folder: Path, ranks: int, kills: int, seed: int = SEED) -> Counts:
    """Kill runs on `ranks` ranks at `kills` moments, spread evenly over the time that a whole run takes.

    Every run is started again until it ends, and compared with one that nobody disturbed, which stays in
    `folder/whole-RANKS`; the others are `folder/run-RANKS-NUMBER`.
    """
    import_all()
    counts, draw = Counts(ranks), random.Random(seed)
    whole = folder / f"whole-{ranks}"
    began = time.monotonic()
    end = start(whole, ranks, LONGEST)
    duration = time.monotonic() - began
    if end.codes != [0] * ranks:
        raise OpenSoraError(f"bench: the run that nobody killed failed: {end.log.strip()[-300:]}")
    number = 0
    while counts.kills < kills:
        number += 1
        _disturb(folder / f"run-{ranks}-{number}", counts, kills, draw, duration)
        counts.runs_finished += 1
        counts.runs_identical += outcome(folder / f"run-{ranks}-{number}") == outcome(whole)
    return counts


def _disturb(run_dir: Path, counts: Counts, kills: int, draw: random.Random, duration: float) -> None:
    """One run: killed and started again until it ends by itself."""
    saved = done = 0
    killed = False  # the start before was
    while True:
        end = start(run_dir, counts.ranks, draw.uniform(0, duration) if counts.kills < kills else LONGEST)
        counts.starts_after_a_kill += killed
        counts.damaged_checkpoints += len(re.findall(r"damaged", end.log))
        if end.resumed is not None:
            counts.saved_steps_lost += end.resumed < saved
            counts.most_steps_lost = max(counts.most_steps_lost, done - end.resumed)
        if -9 not in end.codes:
            if any(end.codes):
                counts.failed_to_resume += 1
                counts.failures.append(end.log[-2000:])
            return
        counts.kills, killed = counts.kills + 1, True
        counts.while_starting += re.search(r" step \d+/", end.log) is None
        counts.while_saving += any((run_dir / "checkpoints").glob(".partial-*"))
        saved, done = max(saved, end.saved), max([0, *(record["step"] for record in outcome(run_dir)[0])])


def outcome(run_dir: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """(everything that was logged of the steps but times, the weights of the last step)."""
    from opensora.training.metrics import read

    records = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    weights = sorted(run_dir.glob(f"checkpoints/step-{STEPS:08d}/weights/*/model.safetensors"))
    logged = [{key: value for key, value in record.items() if key != "seconds"} for record in records]
    return logged, [path.read_bytes() for path in weights]


def start(run_dir: Path, ranks: int, seconds: float) -> End:
    """Start the run, on all ranks at once, and kill them when they are not done within `seconds`."""
    run_dir.mkdir(exist_ok=True)
    logs = [run_dir / f"rank-{rank}.log" for rank in range(ranks)]
    with tempfile.TemporaryDirectory(prefix="opensora-store-") as meeting_place:
        context = multiprocessing.get_context("fork")
        store = str(Path(meeting_place, "store"))
        processes: list[BaseProcess] = [
            context.Process(target=train, args=(str(run_dir), rank, ranks, store, str(logs[rank])))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        until = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        for process in processes:
            process.kill()  # does nothing to one that has ended
            process.join()
    return End([process.exitcode for process in processes], "".join(log.read_text() for log in logs if log.exists()))


def train(run_dir: str, rank: int, ranks: int, store: str, log_file: str) -> None:
    """One rank of one start, in a process of its own."""
    import torch

    from opensora import log
    from opensora.parallel import world as worlds
    from opensora.parallel.watchdog.watchdog import watching
    from opensora.platforms import select
    from opensora.training.build import build_training
    from opensora.training.loop import train as train_on

    torch.set_num_threads(1)
    os.dup2(os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    log.setup(rank)
    try:
        config = config_file(Path(run_dir))
        run = load_config(config)
        world = worlds.meet_at(Path(store), rank, ranks, select("cpu"), run.timeout_seconds)
        with watching(world, run.timeout_seconds):
            training = build_training(run, world, config)
            train_on(training)
            training.metrics.close()
        worlds.stop()
    except Exception:
        traceback.print_exc()
        os._exit(1)  # at once: the other rank may wait for this one


def config_file(run_dir: Path) -> str:
    """The config of a run that trains in milliseconds per step."""
    content = {
        "vae": TINY_VAE,
        "text_encoder": {"type": "classes", "names": captions()},
        "model": {"type": "Latte", "hidden_size": 32, "depth": 2, "num_heads": 2, "patch_size": [1, 2, 2]},
        "scheduler": {"type": "iddpm"},
        "dataset": {"type": "MovingShapes", "clips": 32, "num_frames": 5, "image_size": [16, 16]},
        "lr_scheduler": {"type": "cosine"},
        "warmup_steps": 4,
        "ema_decay": 0.9,
        "plugin": "zero2",
        "dtype": "fp32",
        "micro_batches": 2,
        "steps": STEPS,
        "save_every": SAVE_EVERY,
        "log_every": 1,
        "run_dir": str(run_dir),
    }
    path = run_dir / "config.py"
    text = "".join(f"{key} = {value!r}\n" for key, value in content.items())
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return str(path)


def load_config(path: str) -> Any:
    from opensora.config import load
    from opensora.schema import TrainRun

    return load(path, [], TrainRun).run


def import_all() -> None:
    """What a start needs, before it is forked; nothing is computed, so no threads are there to be lost."""
    import torch.utils.tensorboard  # noqa: F401

    import opensora.parallel.dcp
    import opensora.parallel.watchdog.watchdog
    import opensora.training.build
    import opensora.training.loop  # noqa: F401
    from opensora.parallel.colossal.accelerator import import_colossalai

    import_colossalai()
    with tempfile.TemporaryDirectory() as folder:
        load_config(config_file(Path(folder)))  # imports every component that a config may name


def main() -> None:
    """For tests: python -m opensora.bench.faults FOLDER KILLS_ON_ONE_RANK KILLS_ON_TWO; prints the counts as JSON."""
    import sys

    folder, *kills = sys.argv[1:]
    print(json.dumps([asdict(measure(Path(folder), ranks, int(n))) for ranks, n in enumerate(kills, start=1)]))


if __name__ == "__main__":
    main()
