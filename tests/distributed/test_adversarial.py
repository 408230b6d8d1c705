"""An autoencoder trained with a discriminator: equal numbers on any ranks and plugin, and after a resume."""

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
FEW = "dataset.clips=16"  # each save measures the latents of all clips
LARGE = (FEW, "micro_batches=4")


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]


def curve(run_dir: Path) -> list[float]:
    """All logged losses, gradient norms and figures, in order."""
    logged = records(run_dir)
    assert [record["step"] for record in logged] == list(range(1, STEPS + 1))
    figures = [[value for _, value in sorted(record["figures"].items())] for record in logged]
    return [value for r, each in zip(logged, figures) for value in (r["loss"], r["grad_norm"], *each)]


def saved(run_dir: Path, name: str, step: int = STEPS) -> dict[str, Tensor]:
    return load_file(run_dir / f"checkpoints/step-{step:08d}/weights/{name}/model.safetensors")


def trained(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without running statistics, which depend on one rank's clips."""
    return {name: each for name, each in state.items() if "running" not in name and "batches" not in name}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_ranks(train_to, 1, DEBUG, str(folder), "plugin=ddp", *LARGE)
    return folder


def test_the_discriminator_joins_at_its_step_and_learns(alone: Path, tmp_path: Path) -> None:
    logged = records(alone)
    assert [set(record["figures"]) for record in logged[:START]] == [{"pixels"}] * START
    parts = {"pixels", "gan_weight", "discriminator", "logits_real", "logits_fake"}
    assert [set(record["figures"]) for record in logged[START:]] == [parts] * (STEPS - START)
    figures = [record["figures"] for record in logged[START:]]
    assert figures[-1]["discriminator"] < figures[0]["discriminator"]
    gap = [each["logits_real"] - each["logits_fake"] for each in figures]
    assert gap[-1] > gap[0]
    before, after = saved(alone, "discriminator", STEPS - 1), saved(alone, "discriminator")
    assert all(not torch.equal(before[name], after[name]) for name in trained(after) if name.endswith("weight"))
    run_ranks(train_to, 1, DEBUG, str(tmp_path), "plugin=ddp", *LARGE, "discriminator=None", "save_every=0")
    plain = [record["loss"] for record in records(tmp_path)]
    assert [record["loss"] for record in logged[:START]] == plain[:START]
    assert all(r["loss"] != loss for r, loss in zip(logged[START:], plain[START:], strict=True))
    adversarial, without = saved(alone, "model"), saved(tmp_path, "model")
    assert any(not torch.allclose(adversarial[name], without[name]) for name in adversarial)


@pytest.mark.parametrize(("ranks", "plugin"), [(2, "ddp")], ids=str)
def test_ranks_and_plugin_do_not_change_the_numbers(tmp_path: Path, alone: Path, ranks: int, plugin: str) -> None:
    run_ranks(train_to, ranks, DEBUG, str(tmp_path), f"plugin={plugin}", *LARGE, "save_every=0")
    assert curve(tmp_path) == pytest.approx(curve(alone), rel=1e-4, abs=1e-6)
    for name in ("model", "discriminator"):
        torch.testing.assert_close(trained(saved(tmp_path, name)), trained(saved(alone, name)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("plugin", "dtype"), [("zero1", "bf16")])
def test_resume_is_bit_for_bit(tmp_path: Path, plugin: str, dtype: str) -> None:
    """The run is killed after step 3, one step after the checkpoint; the discriminator joins in step 2."""
    small = (
        FEW,
        "batch_size=1",
        "dataset.image_size=(8, 8)",
    )  # a processor may take seconds for a convolution in bfloat16
    overrides = (f"plugin={plugin}", f"dtype={dtype}", "disc_start=1", *small)
    run_ranks(train_to, 2, DEBUG, str(tmp_path / "whole"), *overrides, "save_every=0")
    run_ranks(kill_after_three, 2, DEBUG, str(tmp_path / "cut"), *overrides)
    assert [record["step"] for record in records(tmp_path / "cut")] == [1, 2, 3]
    run_ranks(train_to, 2, DEBUG, str(tmp_path / "cut"), *overrides)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    model = [saved(tmp_path / name, "model") for name in ("cut", "whole")]
    torch.testing.assert_close(model[0], model[1], rtol=0, atol=0)
    discriminator = [trained(saved(tmp_path / name, "discriminator")) for name in ("cut", "whole")]
    torch.testing.assert_close(discriminator[0], discriminator[1], rtol=0, atol=0)


def test_resume_on_other_ranks_and_another_plugin(tmp_path: Path, alone: Path) -> None:
    run_ranks(kill_after_three, 2, DEBUG, str(tmp_path), "plugin=zero2", *LARGE)
    run_ranks(train_to, 1, DEBUG, str(tmp_path), "plugin=zero1", *LARGE)
    assert curve(tmp_path) == pytest.approx(curve(alone), rel=1e-4, abs=1e-6)


def start_from(run_dir: str, weights: str) -> dict[str, Tensor]:
    run = load(DEBUG, [f"run_dir={run_dir!r}", f"discriminator.from_pretrained={weights!r}"], TrainRun).run
    training = build_training(run, world.current(), DEBUG)
    training.metrics.close()
    assert training.task.discriminator is not None
    return training.task.discriminator.weights()


def test_a_saved_discriminator_starts_another_run(tmp_path: Path, alone: Path) -> None:
    folder = alone / f"checkpoints/step-{STEPS:08d}/weights/discriminator"
    loaded = run_ranks(start_from, 1, str(tmp_path), str(folder))[0]
    torch.testing.assert_close(loaded, saved(alone, "discriminator"), rtol=0, atol=0)


def resume_with_one(run_dir: str) -> str:
    run = load(DEBUG, [f"run_dir={run_dir!r}"], TrainRun).run
    with pytest.raises(CheckpointError) as caught:
        build_training(run, world.current(), DEBUG)
    return str(caught.value)


def test_resume_without_a_saved_discriminator_is_refused(tmp_path: Path) -> None:
    run_ranks(train_to, 1, DEBUG, str(tmp_path), "discriminator=None", "steps=1", FEW)
    assert "step-00000001" in run_ranks(resume_with_one, 1, str(tmp_path))[0]
