"""A run that moves between 1, 2 and 4 ranks and between plugins in the middle of epochs has the numbers of one rank."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opensora.config import load
from opensora.parallel import world
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train
from opensora.training.metrics import read
from opensora.training.parallel_sizes import sequence_size
from tests.dist import run_ranks
from tests.support.short_runs import DEBUG

STEPS = 9
# Four clips a step: an epoch is a step and a half, and a rank accumulates four, two or one of them.
OPTIONS = ["dataset.clips=6", "batch_size=1", "micro_batches=4", "grad_clip=0.05", "warmup_steps=3", "ema_decay=0.8"]
OPTIONS += ["lr_scheduler.type=cosine", "save_every=0", f"steps={STEPS}", "keep_last=9"]
# (ranks, plugin and its keys, step after which a stop is requested)
JOURNEYS = {
    "ranks with samples of their own": [
        (1, "plugin=ddp", 2),
        (2, "plugin=zero2", 4),
        (4, "plugin=zero1", 6),
        (2, "plugin=fsdp", 7),
        (1, "plugin=zero2", STEPS),
    ],
    "ranks that share tokens or heads": [
        (1, "plugin=zero2-seq", 2),
        (2, "plugin=zero2-seq", 4),
        (4, "plugin=hybrid plugin_config.tp_size=2 sp_size=2", 5),
        (4, "plugin=zero1-seq sp_size=2", 7),
        (2, "plugin=hybrid plugin_config.tp_size=2", 8),
        (1, "plugin=hybrid", STEPS),
    ],
}


def train_until(run_dir: str, keys: str, until: int) -> int:
    """Train until a stop is requested in the middle of the accumulation of step `until`. Returns the start step."""
    run = load(DEBUG, [*OPTIONS, f"run_dir={run_dir!r}", *keys.split()], TrainRun).run
    ranks = world.current().size
    training = build_training(run, world.split_sequence_groups(sequence_size(run, ranks, ranks, DEBUG)), DEBUG)
    fetched_steps: list[int] = []

    def record_steps(batches: Any) -> Any:
        for batch in batches:
            fetched_steps.append(batch.step)
            yield batch

    training.batches = record_steps(training.batches)
    training.stop.also_when(lambda: until < STEPS and fetched_steps[-1] + 1 == until)
    assert train(training) is (until == STEPS)
    training.metrics.close()
    return training.start_step


def records(run_dir: Path) -> list[dict[str, Any]]:
    logged = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in logged] == list(range(1, STEPS + 1))
    return logged


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank that is not interrupted."""
    folder = tmp_path_factory.mktemp("alone")
    run_ranks(train_until, 1, str(folder), "plugin=ddp", STEPS)
    return folder


@pytest.mark.parametrize("journey", JOURNEYS)
def test_from_one_rank_to_two_to_four_and_back(tmp_path: Path, alone: Path, journey: str) -> None:
    begun = 0
    for ranks, keys, until in JOURNEYS[journey]:
        assert run_ranks(train_until, ranks, str(tmp_path), keys, until) == [begun] * ranks
        begun = until
    moved, whole = records(tmp_path), records(alone)
    assert [record["lr"] for record in moved] == [record["lr"] for record in whole]
    # the warm-up ends at the rate with which the cosine begins
    assert len({record["lr"] for record in whole}) == STEPS - 1
    for name in ("loss", "grad_norm"):
        assert [record[name] for record in moved] == pytest.approx([record[name] for record in whole], rel=1e-4)
    for name in ("model", "ema"):
        file = f"checkpoints/step-{STEPS:08d}/weights/{name}/model.safetensors"
        one, other = load_file(tmp_path / file), load_file(alone / file)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keys", ["plugin=zero2-seq", "plugin=hybrid plugin_config.tp_size=2"])
def test_stopped_run_on_the_same_ranks_is_bit_equal(tmp_path: Path, keys: str) -> None:
    """A run with sharded state, stopped twice in the middle of an epoch, equals one that is not stopped."""
    run_ranks(train_until, 2, str(tmp_path / "whole"), keys, STEPS)
    for until in (2, 5, STEPS):
        run_ranks(train_until, 2, str(tmp_path / "moved"), keys, until)
    moved, whole = ([{**each, "seconds": 0} for each in records(tmp_path / name)] for name in ("moved", "whole"))
    assert moved == whole
    for name in ("model", "ema"):
        file = f"checkpoints/step-{STEPS:08d}/weights/{name}/model.safetensors"
        assert (tmp_path / "moved" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
