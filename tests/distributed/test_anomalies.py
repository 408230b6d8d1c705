"""A step that is anomalous on one rank is skipped on all, and a resumed run skips the same steps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from opensora.config import load
from opensora.errors import TrainingDiverged
from opensora.parallel import world
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.diffusion_task import DiffusionTask
from opensora.training.loop import TrainState, train
from opensora.training.metrics import read
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch
from tests.dist import run_ranks
from tests.support.short_runs import DEBUG, Killed

STEPS = 6
PLACE = 3  # with two ranks and micro-batches of two, a sample of the second rank's
Spoilt = Mapping[int, float]  # step -> what the loss of the sample at PLACE is multiplied by


def spoiling(spoilt: Spoilt) -> Any:
    plain = DiffusionTask.loss

    def spoilt_loss(self: DiffusionTask, model: Callable[..., Any], batch: Batch) -> MicroBatchLoss:
        loss = plain(self, model, batch)
        factors = [spoilt.get(batch.step, 1.0) if sample_id == PLACE else 1.0 for sample_id in batch.sample_ids]
        return replace(loss, loss_B=loss.loss_B * torch.tensor(factors))

    return mock.patch.object(DiffusionTask, "loss", spoilt_loss)


def go(run_dir: str, spoilt: Spoilt, *overrides: str, until: int = STEPS, without: int | None = None) -> str | None:
    """Train until killed after `until` steps, or without the data of step `without`. Returns the final error."""
    keys = [f"steps={STEPS}", f"run_dir={run_dir!r}", "save_every=2", *overrides]
    state = build_training(load(DEBUG, keys, TrainRun).run, world.current(), DEBUG)
    if until < STEPS:
        die_at_trouble(state, until)
    try:
        with spoiling(spoilt):
            if without is not None:
                whole, state.run = state.run, replace(state.run, steps=without)
                train(state)
                for _ in range(whole.micro_batches // state.world.data_size):
                    next(state.batches)
                state.run, state.start_step = whole, without + 1
            train(state)
    except (Killed, TrainingDiverged) as error:
        return str(error)
    finally:
        state.metrics.close()
    return None


def die_at_trouble(state: TrainState, step: int) -> None:
    log = state.metrics.log_trouble

    def log_then_die(reached: int, trouble: Mapping[str, Any]) -> None:
        log(reached, trouble)
        if reached == step:
            raise Killed

    state.metrics.log_trouble = log_then_die  # type: ignore[method-assign]


def killed_after_five(run_dir: str, spoilt: Spoilt, *overrides: str) -> None:
    go(run_dir, spoilt, *overrides, until=5)


def spare(run_dir: str, step: int, *overrides: str) -> None:
    go(run_dir, {}, *overrides, without=step)


def records(run_dir: Path) -> list[dict[str, Any]]:
    """Logged losses and anomalies, without times and saves."""
    lines = [{k: v for k, v in record.items() if k != "seconds"} for record in read(run_dir / "metrics.jsonl")]
    return [record for record in lines if "save" not in record]


def weights(run_dir: Path) -> list[bytes]:
    folder = run_dir / f"checkpoints/step-{STEPS:08d}/weights"
    return [(folder / name / "model.safetensors").read_bytes() for name in ("model", "ema")]


@pytest.mark.parametrize(("ranks", "plugin"), [(1, "ddp"), (2, "zero2")], ids=str)
def test_skipped_step_leaves_no_trace_on_any_rank(tmp_path: Path, ranks: int, plugin: str) -> None:
    keys = (f"plugin={plugin}", "on_nan=skip")
    run_ranks(go, ranks, str(tmp_path / "met"), {3: math.nan}, *keys)
    run_ranks(spare, ranks, str(tmp_path / "spared"), 3, *keys)
    assert weights(tmp_path / "met") == weights(tmp_path / "spared")
    lines = records(tmp_path / "met")
    losses = [(record["step"], record["loss"]) for record in lines if "loss" in record]
    assert losses == [(record["step"], record["loss"]) for record in records(tmp_path / "spared")]
    assert [record["skipped"] for record in lines if "loss" in record] == [0, 0, 0, 1, 1]
    trouble = next(record["trouble"] for record in lines if "trouble" in record)
    assert [each["place"] for each in trouble["samples"]] == [0, 1, 2, 3]  # of both ranks
    assert [each["loss"] == "nan" for each in trouble["samples"]] == [False, False, False, True]
    assert len({each["row"] for each in trouble["samples"]}) == 4


def test_resumed_run_detects_the_same_spikes(tmp_path: Path) -> None:
    """The run is killed at step 5, whose spike is detected only with the losses from before the checkpoint."""
    spoilt = {1: math.nan, 4: 40.0}
    keys = ("on_nan=skip", "spike_factor=4", "spike_window=3")
    run_ranks(go, 2, str(tmp_path / "whole"), spoilt, *keys, "save_every=0")
    run_ranks(killed_after_five, 2, str(tmp_path / "cut"), spoilt, *keys)
    assert [r["step"] for r in records(tmp_path / "cut")] == [1, 2, 3, 4, 5]
    run_ranks(go, 2, str(tmp_path / "cut"), spoilt, *keys)
    lines = records(tmp_path / "cut")
    assert lines == records(tmp_path / "whole")
    assert [(r["step"], r["trouble"]["skipped"]) for r in lines if "trouble" in r] == [(2, 1), (5, 2)]
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_max_skips_stops_every_rank(tmp_path: Path) -> None:
    spoilt = {2: math.nan, 3: math.inf}
    ended = run_ranks(go, 2, str(tmp_path), spoilt, "on_nan=skip", "max_skips=1")
    for text in ended:
        assert text.startswith(
            "training: the loss is inf between step 3 and step 4 (2 in a row); the weights were not updated"
        )
        assert f"last good checkpoint: {tmp_path}/checkpoints/step-00000002; " in text
