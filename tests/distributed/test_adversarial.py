"""An autoencoder against a discriminator: the run is as exact as one without, on any ranks, and goes on where it was cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opensora.config import load
from opensora.errors import CheckpointError
from opensora.parallel import world
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.metrics import read
from tests.dist import run_ranks
from tests.support.short_runs import STEPS, kill_after_three, train_to

ROOT = Path(__file__).resolve().parents[2]
DEBUG = str(ROOT / "configs/vae/train/debug_adversarial.py")
START = 2  # disc_start of that config


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]


def curve(run_dir: Path) -> list[float]:
    """Every logged number that is learnt, in order."""
    found = records(run_dir)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    return [value for r in found for value in (r["loss"], r["grad_norm"], *dict(sorted(r["figures"].items())).values())]


def saved(run_dir: Path, name: str, step: int = STEPS) -> dict[str, Tensor]:
    return load_file(run_dir / f"checkpoints/step-{step:08d}/weights/{name}/model.safetensors")


def trained(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without running statistics, which are of one rank's clips."""
    return {name: each for name, each in state.items() if "running" not in name and "batches" not in name}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_ranks(train_to, 1, DEBUG, str(folder), "plugin=ddp", "micro_batches=4")
    return folder


def test_the_discriminator_joins_at_its_step_and_learns(alone: Path, tmp_path: Path) -> None:
    found = records(alone)
    assert [set(record["figures"]) for record in found[:START]] == [{"pixels"}] * START
    parts = {"pixels", "gan_weight", "discriminator", "logits_real", "logits_fake"}
    assert [set(record["figures"]) for record in found[START:]] == [parts] * (STEPS - START)
    judged = [record["figures"] for record in found[START:]]
    assert judged[-1]["discriminator"] < judged[0]["discriminator"]
    gap = [figures["logits_real"] - figures["logits_fake"] for figures in judged]
    assert gap[-1] > gap[0]
    before, after = saved(alone, "discriminator", STEPS - 1), saved(alone, "discriminator")
    assert all(not torch.equal(before[name], after[name]) for name in trained(after) if name.endswith("weight"))
    run_ranks(train_to, 1, DEBUG, str(tmp_path), "plugin=ddp", "micro_batches=4", "discriminator=None")
    plain = [record["loss"] for record in records(tmp_path)]
    assert [record["loss"] for record in found[:START]] == plain[:START]
    assert all(r["loss"] != loss for r, loss in zip(found[START:], plain[START:], strict=True))
    mine, theirs = saved(alone, "model"), saved(tmp_path, "model")
    assert any(not torch.allclose(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(("ranks", "plugin"), [(2, "ddp"), (2, "zero2")], ids=str)
def test_ranks_and_plugin_do_not_change_the_numbers(tmp_path: Path, alone: Path, ranks: int, plugin: str) -> None:
    run_ranks(train_to, ranks, DEBUG, str(tmp_path), f"plugin={plugin}", "micro_batches=4")
    assert curve(tmp_path) == pytest.approx(curve(alone), rel=1e-4, abs=1e-6)
    for name in ("model", "discriminator"):
        torch.testing.assert_close(trained(saved(tmp_path, name)), trained(saved(alone, name)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("plugin", "dtype"), [("zero1", "bf16"), ("ddp", "fp32")])
def test_resume_is_bit_for_bit(tmp_path: Path, plugin: str, dtype: str) -> None:
    """Cut after step 3, one beyond the checkpoint and the first with the discriminator; the same with it in between."""
    small = ("batch_size=1", "dataset.image_size=(8, 8)")  # a processor may take seconds for a convolution in bfloat16
    overrides = (f"plugin={plugin}", f"dtype={dtype}", "disc_start=1", *small)
    run_ranks(train_to, 2, DEBUG, str(tmp_path / "whole"), *overrides)
    run_ranks(kill_after_three, 2, DEBUG, str(tmp_path / "cut"), *overrides)
    assert [record["step"] for record in records(tmp_path / "cut")] == [1, 2, 3]
    run_ranks(train_to, 2, DEBUG, str(tmp_path / "cut"), *overrides)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    model = [saved(tmp_path / name, "model") for name in ("cut", "whole")]
    torch.testing.assert_close(model[0], model[1], rtol=0, atol=0)
    rival = [trained(saved(tmp_path / name, "discriminator")) for name in ("cut", "whole")]
    torch.testing.assert_close(rival[0], rival[1], rtol=0, atol=0)


def test_resume_on_other_ranks_and_another_plugin(tmp_path: Path, alone: Path) -> None:
    run_ranks(kill_after_three, 2, DEBUG, str(tmp_path), "plugin=zero2", "micro_batches=4")
    run_ranks(train_to, 1, DEBUG, str(tmp_path), "plugin=zero1", "micro_batches=4")
    assert curve(tmp_path) == pytest.approx(curve(alone), rel=1e-4, abs=1e-6)


def start_from(run_dir: str, weights: str) -> dict[str, Tensor]:
    run = load(DEBUG, [f"run_dir={run_dir!r}", f"discriminator.from_pretrained={weights!r}"], TrainRun).run
    training = build_training(run, world.current(), DEBUG)
    training.metrics.close()
    assert training.task.discriminator is not None
    return training.task.discriminator.weights()


def test_a_saved_discriminator_starts_another_run(tmp_path: Path, alone: Path) -> None:
    folder = alone / f"checkpoints/step-{STEPS:08d}/weights/discriminator"
    found = run_ranks(start_from, 1, str(tmp_path), str(folder))[0]
    torch.testing.assert_close(found, saved(alone, "discriminator"), rtol=0, atol=0)


def resume_with_one(run_dir: str) -> str:
    run = load(DEBUG, [f"run_dir={run_dir!r}"], TrainRun).run
    with pytest.raises(CheckpointError) as caught:
        build_training(run, world.current(), DEBUG)
    return str(caught.value)


def test_a_run_that_had_none_says_so(tmp_path: Path) -> None:
    run_ranks(train_to, 1, DEBUG, str(tmp_path), "discriminator=None")
    assert "step-00000005" in run_ranks(resume_with_one, 1, str(tmp_path))[0]
