"""Saves during training on several ranks: they hold the copied state, and a full disk on one rank ends all ranks."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from opensora.config import load
from opensora.errors import CheckpointError
from opensora.parallel import collectives, dcp, world
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import TrainState, train
from opensora.training.metrics import read
from tests.dist import run_ranks
from tests.support.short_runs import DEBUG

STEPS = 6


def build_run(run_dir: str, *overrides: str) -> TrainState:
    options = [f"run_dir={run_dir!r}", f"steps={STEPS}", "save_every=2", "keep_last=9", *overrides]
    return build_training(load(DEBUG, options, TrainRun).run, world.current(), DEBUG)


def train_slowly_saved(run_dir: str, background: bool) -> None:
    """Train; the files of a save are opened only after the next step has changed the weights."""
    training = build_run(run_dir, f"background_save={background}")
    stepped, real, log = threading.Event(), dcp.open_file, training.metrics.log
    stepped.set()

    def save(step: int, bad_rows: list[str]) -> float:
        training.checkpointer.finish()
        if background and step < STEPS:
            stepped.clear()
        return type(training.checkpointer).save(training.checkpointer, step, bad_rows)  # type: ignore[arg-type]

    def log_and_let_through(record: Any) -> None:
        log(record)
        if record.step % 2:
            stepped.set()

    def open_late(path: Path, mode: str) -> Any:
        assert stepped.wait(60)
        return real(path, mode)

    training.checkpointer.save = save  # type: ignore[method-assign]
    training.metrics.log = log_and_let_through  # type: ignore[method-assign]
    dcp.open_file = open_late
    try:
        assert train(training)
    finally:
        dcp.open_file = real
        training.metrics.close()


def logged(run_dir: Path) -> list[dict[str, Any]]:
    losses = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in losses]


def resumed(run_dir: str) -> dict[str, Any]:
    """This rank's part of the state that a resumed run loads."""
    training = build_run(run_dir)
    training.metrics.close()
    state = training.checkpointer._state()  # type: ignore[attr-defined]
    return {key: getattr(value, "to_local", lambda v=value: v)().clone() for key, value in state.items()}


@pytest.mark.parametrize(("plugin", "ranks"), [("zero2", 2), ("ddp", 2)])
def test_background_save_changes_no_run_or_checkpoint(tmp_path: Path, plugin: str, ranks: int) -> None:
    for background in (True, False):
        run_ranks(train_slowly_saved, ranks, str(tmp_path / str(background)), background)
    async_run, blocking_run = tmp_path / "True", tmp_path / "False"
    assert logged(async_run) == logged(blocking_run)
    saves = [record["save"]["waited"] for record in read(async_run / "metrics.jsonl") if "save" in record]
    assert len(saves) == STEPS // 2
    assert min(saves) > 0
    for step in (2, 4, 6):
        for name in ("model", "ema"):
            file = f"checkpoints/step-{step:08d}/weights/{name}/model.safetensors"
            one, other = load_file(async_run / file), load_file(blocking_run / file)
            assert all((one[key] == other[key]).all() for key in other), (step, name)
    for folder in (async_run, blocking_run):
        for path in (folder / "checkpoints").glob("*6"):  # resume from the one in the middle
            path.rename(folder / path.name)
    states = [run_ranks(resumed, ranks, str(folder)) for folder in (async_run, blocking_run)]
    for one, other in zip(*states, strict=True):
        assert one.keys() == other.keys()
        assert all((one[key] == other[key]).all() for key in other)


def train_until_the_disk_is_full(run_dir: str, rank: int) -> str:
    """Train; the disk of `rank` is full when step 4 is saved. Returns the error."""
    training = build_run(run_dir, "steps=12")
    real = dcp.open_file

    def fill(path: Path, mode: str) -> Any:
        if "step-00000004" in str(path) and collectives.rank() == rank and "w" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, mode)

    dcp.open_file = fill
    try:
        train(training)
    except CheckpointError as error:
        return str(error)
    finally:
        dcp.open_file = real
        training.metrics.close()
    return "trained on"


@pytest.mark.parametrize("rank", [0, 1])
def test_full_disk_on_one_rank_ends_all_at_next_step(tmp_path: Path, rank: int) -> None:
    for text in run_ranks(train_until_the_disk_is_full, 2, str(tmp_path), rank):
        assert "the disk is full" in text
        assert f"/__{rank}_" in text  # the file of that rank
        assert "earlier checkpoints" in text
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert logged(tmp_path)[-1]["step"] in (5, 6)  # step 6 when the save was still being tried at the end of step 5
