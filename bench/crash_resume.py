"""`opensora bench faults`: kill -9 at random moments of a run, restart it, and count what is lost or differs.

A start is a fork of this process, which has imported everything, so it costs what a run costs without the imports.
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

from bench.engine import TINY_VAE, captions
from opensora.errors import OpenSoraError
from opensora.platforms import Platform

STEPS, SAVE_EVERY = 16, 2
MAX_SECONDS = 300  # of a run that is not killed
SEED = 1


@dataclass
class Counts:
    """Counts over all runs on one number of ranks."""

    ranks: int
    kills: int = 0
    while_starting: int = 0  # before the first step of that start
    while_saving: int = 0  # a half-written checkpoint was left
    starts_after_a_kill: int = 0
    failed_to_resume: int = 0
    damaged_checkpoints: int = 0  # reported by a start that resumed
    saved_steps_lost: int = 0  # starts that resumed from an earlier step than one reported as saved
    most_steps_lost: int = 0
    most_steps_allowed: int = 2 * SAVE_EVERY  # one interval, and one for the save that was being written
    runs_finished: int = 0
    runs_identical: int = 0  # every logged number and the final weights, bit for bit
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StartResult:
    """The end of one start."""

    codes: list[int | None]  # per rank; -9 for killed
    log: str

    @property
    def resumed(self) -> int | None:
        """The step it resumed from; None when it was killed before it resumed."""
        match = re.search(r"resumed from \S+ at step (\d+)", self.log)
        if match is None:
            return 0 if re.search(r" step \d+/", self.log) else None
        return int(match[1])

    @property
    def saved(self) -> int:
        return max((int(step) for step in re.findall(r"step (\d+) saved: ", self.log)), default=0)


def run(platform: Platform, quick: bool) -> dict[str, Any]:
    """Kill 50 starts, 20 of them on two ranks at once; with `quick` 5."""
    kills_by_ranks = {1: 3, 2: 2} if quick else {1: 30, 2: 20}
    with tempfile.TemporaryDirectory(prefix="opensora-bench-") as folder:
        counts = [measure(Path(folder), ranks, kills) for ranks, kills in kills_by_ranks.items()]
    return {"steps": STEPS, "save_every": SAVE_EVERY, "counts": [asdict(each) for each in counts]}


def tables(results: dict[str, Any]) -> list[Table]:
    title = f"kill -9 at random moments of runs of {results['steps']} steps that save every {results['save_every']}"
    table = Table("", *(f"{counts['ranks']} rank(s)" for counts in results["counts"]), title=title)
    for name in list(results["counts"][0])[1:]:
        if name != "failures":
            table.add_row(name.replace("_", " "), *(str(counts[name]) for counts in results["counts"]))
    return [table]


def measure(folder: Path, ranks: int, kills: int, seed: int = SEED) -> Counts:
    """Kill runs on `ranks` ranks at `kills` moments, spread evenly over the time that a whole run takes.

    Every run is restarted until it ends, then compared with an undisturbed one, which stays in `folder/whole-RANKS`;
    the others are `folder/run-RANKS-NUMBER`.
    """
    import_all()
    counts, rng = Counts(ranks), random.Random(seed)
    whole = folder / f"whole-{ranks}"
    begin = time.monotonic()
    end = start(whole, ranks, MAX_SECONDS)
    duration = time.monotonic() - begin
    if end.codes != [0] * ranks:
        raise OpenSoraError(f"bench: the undisturbed run failed: {end.log.strip()[-300:]}")
    number = 0
    while counts.kills < kills:
        number += 1
        _disturb(folder / f"run-{ranks}-{number}", counts, kills, rng, duration)
        counts.runs_finished += 1
        counts.runs_identical += outcome(folder / f"run-{ranks}-{number}") == outcome(whole)
    return counts


def _disturb(run_dir: Path, counts: Counts, kills: int, rng: random.Random, duration: float) -> None:
    """Kill and restart one run until it ends by itself."""
    saved = logged = 0
    killed = False  # the previous start was killed
    while True:
        end = start(run_dir, counts.ranks, rng.uniform(0, duration) if counts.kills < kills else MAX_SECONDS)
        counts.starts_after_a_kill += killed
        counts.damaged_checkpoints += len(re.findall(r"damaged", end.log))
        if end.resumed is not None:
            counts.saved_steps_lost += end.resumed < saved
            counts.most_steps_lost = max(counts.most_steps_lost, logged - end.resumed)
        if -9 not in end.codes:
            if any(end.codes):
                counts.failed_to_resume += 1
                counts.failures.append(end.log[-2000:])
            return
        counts.kills, killed = counts.kills + 1, True
        counts.while_starting += re.search(r" step \d+/", end.log) is None
        counts.while_saving += any((run_dir / "checkpoints").glob(".partial-*"))
        saved, logged = max(saved, end.saved), max([0, *(record["step"] for record in outcome(run_dir)[0])])


def outcome(run_dir: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """(logged records without times, weights of the last step)."""
    from opensora.training.metrics import read

    records = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    weights = sorted(run_dir.glob(f"checkpoints/step-{STEPS:08d}/weights/*/model.safetensors"))
    without_times = [{key: value for key, value in record.items() if key != "seconds"} for record in records]
    return without_times, [path.read_bytes() for path in weights]


def start(run_dir: Path, ranks: int, seconds: float) -> StartResult:
    """Start the run on all ranks and kill them if they are not done within `seconds`."""
    run_dir.mkdir(exist_ok=True)
    logs = [run_dir / f"rank-{rank}.log" for rank in range(ranks)]
    with tempfile.TemporaryDirectory(prefix="opensora-store-") as store_folder:
        context = multiprocessing.get_context("fork")
        store = str(Path(store_folder, "store"))
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
            process.kill()  # no effect on one that has ended
            process.join()
    return StartResult(
        [process.exitcode for process in processes], "".join(log.read_text() for log in logs if log.exists())
    )


def train(run_dir: str, rank: int, ranks: int, store: str, log_file: str) -> None:
    """Run one rank of one start in this process."""
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
        world = worlds.init_from_file(Path(store), rank, ranks, select("cpu"), run.timeout_seconds)
        with watching(world, run.timeout_seconds):
            state = build_training(run, world, config)
            train_on(state)
            state.metrics.close()
        worlds.shutdown()
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
    """Import everything that a start needs before it forks; nothing is computed, so the fork loses no threads."""
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
    """python -m bench.crash_resume FOLDER KILLS_ON_ONE_RANK KILLS_ON_TWO: print the counts as JSON, for tests."""
    import sys

    folder, *kills = sys.argv[1:]
    print(json.dumps([asdict(measure(Path(folder), ranks, int(n))) for ranks, n in enumerate(kills, start=1)]))


if __name__ == "__main__":
    main()
