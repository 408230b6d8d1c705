"""Training with ranks that share the tokens of each sample has the losses, checkpoints and data of one rank."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from opensora.config import load
from opensora.datasets.moving_shapes import MovingShapes
from opensora.errors import ConfigError
from opensora.parallel import sequence_parallel, world
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train
from opensora.training.metrics import read
from opensora.training.parallel_sizes import sequence_size
from opensora.training.reconstruction_check import CLIPS
from tests.dist import one_rank, run_ranks
from tests.support.short_runs import DEBUG, ROOT

STEPS = 8
# 3 frames, 9 patches and 3 heads are divided by no group here, but each of 4 ranks has tokens.
ODD = ("dataset.num_frames=3", "dataset.image_size=(24, 24)", "model.num_heads=3", "model.hidden_size=48")
# No clipping, and an eps above most gradients: otherwise Adam would hide a wrong scale of all gradients.
SENSITIVE = ("grad_clip=0", "optimizer.eps=0.01", "optimizer.lr=0.01")
VALIDATION = "validation_dataset={'type': 'MovingShapes', 'clips': 8, 'num_frames': 3, 'image_size': (24, 24)}"
COMMON = ("micro_batches=2", "batch_size=1", "save_every=0", *ODD, *SENSITIVE, VALIDATION, "validation_batches=2")


def train_on_mesh(run_dir: str, sp_size: int, *overrides: str) -> tuple[int, int]:
    """Train in groups of `sp_size`. Returns (number of clips that this rank decoded, of captions that it encoded)."""
    here = world.split_sequence_groups(sp_size)
    run = load(DEBUG, [*COMMON, f"steps={STEPS}", f"run_dir={run_dir!r}", *overrides], TrainRun).run
    decoded: list[int] = []
    clip = MovingShapes.clip
    with mock.patch.object(MovingShapes, "clip", lambda self, row, draw: decoded.append(row) or clip(self, row, draw)):
        training = build_training(run, here, DEBUG)
        train(training)
        training.metrics.close()
    return len(decoded), len(training.task.codec.captions)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank with zero2."""
    folder = tmp_path_factory.mktemp("alone")
    run_ranks(train_on_mesh, 1, str(folder), 1, "plugin=zero2")
    return folder


MESHES = {
    "2 ranks, one group": (2, 2, ("plugin=zero2-seq",)),
    "4 ranks, one group": (4, 4, ("plugin=zero2-seq", "sp_mode=ulysses")),
    "4 ranks, two groups": (4, 2, ("plugin=zero2-seq", "grad_checkpoint=True")),
    "3 ranks, a head each": (3, 3, ("plugin=hybrid", "plugin_config.tp_size=3")),
    "ddp": (2, 2, ("plugin=ddp", "sp_mode=ulysses", "grad_checkpoint=True")),
}


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_curve_equals_one_rank(tmp_path: Path, alone: Path, mesh: str) -> None:
    """Losses are equal to 1e-5 in all steps. Only the first rank of each group decodes clips and encodes captions.

    The main rank also decodes the clips on which the autoencoder is checked.
    """
    ranks, sp_size, overrides = MESHES[mesh]
    results = run_ranks(train_on_mesh, ranks, str(tmp_path), sp_size, *overrides)
    assert len(curve(alone)) == STEPS
    assert len({round(loss, 4) for loss in curve(alone)}) == STEPS
    assert curve(tmp_path) == pytest.approx(curve(alone), rel=1e-5)
    assert records(tmp_path, "grad_norm") == pytest.approx(records(alone, "grad_norm"), rel=1e-4)
    assert records(tmp_path, "tokens") == records(alone, "tokens")
    validations = [read(path / "metrics.jsonl") for path in (alone, tmp_path)]
    expected, validation = (next(r["validation"] for r in records if "validation" in r) for records in validations)
    assert validation == pytest.approx(expected, rel=1e-5)
    for rank, (decoded, encoded) in enumerate(results):
        leads = rank % sp_size == 0
        assert decoded == (2 * (STEPS + 1) * sp_size // ranks if leads else 0) + (CLIPS if rank == 0 else 0)
        assert (encoded > 0) == leads


def train_unscaled(run_dir: str, function: str) -> None:
    """Train on two ranks; the backward of `function` does not scale its gradient."""
    backward = getattr(sequence_parallel, function).backward
    factor = {"SplitTokens": 2.0, "GatherTokens": 0.5}[function]

    def unscaled(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, *others = backward(ctx, grad)
        return scaled * factor, *others

    with mock.patch.object(getattr(sequence_parallel, function), "backward", staticmethod(unscaled)):
        train_on_mesh(run_dir, 2, "plugin=zero2-seq", "steps=5")


@pytest.mark.parametrize("function", ["SplitTokens", "GatherTokens"])
def test_unscaled_gradients_change_curve(tmp_path: Path, alone: Path, function: str) -> None:
    run_ranks(train_unscaled, 2, str(tmp_path), function)
    unscaled_curve, expected = curve(tmp_path), curve(alone)[:5]
    assert unscaled_curve[0] == pytest.approx(expected[0], rel=1e-5)  # the forward pass is the same
    assert unscaled_curve != pytest.approx(expected, rel=1e-4)


def weights_after_resume(run_dir: str, sp_size: int, plugin: str) -> dict[str, Tensor]:
    """Weights and averaged weights that a resumed run loads."""
    run = load(DEBUG, [*COMMON, f"run_dir={run_dir!r}", f"plugin={plugin}"], TrainRun).run
    training = build_training(run, world.split_sequence_groups(sp_size), DEBUG)
    training.metrics.close()
    assert training.ema is not None
    averages = {f"average {name}": tensor for name, tensor in training.ema.weights().items()}
    return training.engine.gather_state_dict() | averages


@pytest.mark.parametrize(("first", "then"), [((2, 2), (1, 1)), ((1, 1), (4, 2))], ids=["2 to 1", "1 to 4"])
def test_checkpoint_is_independent_of_mesh(
    tmp_path: Path, alone: Path, first: tuple[int, int], then: tuple[int, int]
) -> None:
    """The other mesh loads a bit-equal state, and the losses continue like those of one rank."""
    folder = str(tmp_path)
    (ranks, sp_size), (others, other_size) = first, then
    run_ranks(train_on_mesh, ranks, folder, sp_size, "plugin=zero2-seq", f"sp_size={sp_size}", "steps=4")
    before = run_ranks(weights_after_resume, ranks, folder, sp_size, "zero2")[0]
    after = run_ranks(weights_after_resume, others, folder, other_size, "zero1-seq")[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    run_ranks(train_on_mesh, others, folder, other_size, "plugin=zero2-seq", f"sp_size={other_size}", "steps=8")
    assert curve(tmp_path) == pytest.approx(curve(alone)[:8], rel=1e-5)


def test_resumed_mesh_is_bit_exact(tmp_path: Path) -> None:
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    run_ranks(train_on_mesh, 2, whole, 2, "plugin=zero2-seq", "steps=6")
    for steps in (3, 6):
        run_ranks(train_on_mesh, 2, cut, 2, "plugin=zero2-seq", f"steps={steps}")
    assert curve(Path(cut)) == curve(Path(whole))


def curve(run_dir: Path) -> list[float]:
    return records(run_dir, "loss")


def records(run_dir: Path, key: str) -> list[Any]:
    return [record[key] for record in read(run_dir / "metrics.jsonl") if "loss" in record]


def test_autoencoder_refuses_sequence_parallel() -> None:
    run = load(str(ROOT / "configs/vae/train/debug.py"), ["sp_size=2", "run_dir=nowhere"], TrainRun).run
    with pytest.raises(ConfigError, match=r"'sp_size'.* 2 .*'autoencoder'.*allowed: 1"):
        sequence_size(run, 2, 2, "run.py")


def test_sp_size_must_match_world() -> None:
    def build() -> None:
        build_training(load(DEBUG, ["sp_size=2", "run_dir=nowhere"], TrainRun).run, world.current(), DEBUG)

    with one_rank(), pytest.raises(ConfigError, match=r"'sp_size'.* 2.*groups of 1"):
        build()
