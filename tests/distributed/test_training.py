"""A run depends on config, manifest and seed alone, not on ranks, plugin or interruptions."""

from pathlib import Path

import pytest

from opensora.training.metrics import read
from tests.dist import run_ranks
from tests.support.short_runs import DEBUG, ROOT, STEPS, kill_after_three, train_to
from tests.support.text_models import shared_bert

AUTOENCODER = str(ROOT / "configs/vae/train/debug.py")
CLIPPED = ("micro_batches=4", "grad_clip=0.05", "save_every=0")


def losses(run_dir: Path) -> list[float]:
    records = [record for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process."""
    folder = tmp_path_factory.mktemp("alone")
    run_ranks(train_to, 1, DEBUG, str(folder), "plugin=ddp", *CLIPPED)
    return losses(folder)


def test_losses_are_not_constant(alone: list[float]) -> None:
    assert len({round(loss, 4) for loss in alone}) == STEPS


# zero2 on 1 and 2 ranks follows below and in test_elastic.py
@pytest.mark.parametrize(("ranks", "plugin"), [(2, "ddp"), (4, "zero1"), (2, "fsdp")], ids=str)
def test_ranks_and_plugin_do_not_change_the_losses(tmp_path: Path, alone: list[float], ranks: int, plugin: str) -> None:
    """Four micro-batches a step, shared by 1, 2 or 4 ranks, clipped: the same curve to 1e-5 in fp32."""
    run_ranks(train_to, ranks, DEBUG, str(tmp_path), f"plugin={plugin}", *CLIPPED)
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


def test_a_sharded_text_encoder_changes_nothing(tmp_path: Path, alone: list[float]) -> None:
    shared = "text_encoder_parallel=shard"
    run_ranks(train_to, 2, DEBUG, str(tmp_path), "plugin=zero2", *CLIPPED, shared)
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


# the other pairs of plugin and dtype: test_checkpoint_matrix.py
@pytest.mark.parametrize(("plugin", "dtype"), [("zero2", "bf16"), ("fsdp", "bf16")])
def test_resume_on_the_same_ranks_is_bit_for_bit(tmp_path: Path, plugin: str, dtype: str) -> None:
    """The run is killed after step 3, one step after the checkpoint: repeated and later steps are bit-equal."""
    overrides = (f"plugin={plugin}", f"dtype={dtype}")
    run_ranks(train_to, 2, DEBUG, str(tmp_path / "whole"), *overrides, "save_every=0")
    run_ranks(kill_after_three, 2, DEBUG, str(tmp_path / "cut"), *overrides)
    assert [record["step"] for record in read(tmp_path / "cut" / "metrics.jsonl") if "loss" in record] == [1, 2, 3]
    run_ranks(train_to, 2, DEBUG, str(tmp_path / "cut"), *overrides)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    for name in ("model", "ema"):
        file = f"checkpoints/step-{STEPS:08d}/weights/{name}/model.safetensors"
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_activation_checkpointing_changes_nothing(tmp_path: Path, alone: list[float]) -> None:
    overrides = ("plugin=zero2", *CLIPPED, "grad_checkpoint=true")
    run_ranks(train_to, 2, DEBUG, str(tmp_path), *overrides)
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


def test_the_autoencoder_task_runs_in_the_same_loop(tmp_path: Path) -> None:
    """Equal losses on 1 and 2 ranks, a PSNR at the end, and weights from which a diffusion run can start."""
    for ranks in (1, 2):
        run_ranks(train_to, ranks, AUTOENCODER, str(tmp_path / str(ranks)), "dataset.clips=16", "save_every=0")
    one, two = (losses(tmp_path / str(ranks)) for ranks in (1, 2))
    assert two == pytest.approx(one, rel=1e-5)
    figures = [r["validation"]["psnr"] for r in read(tmp_path / "2" / "metrics.jsonl") if "validation" in r]
    assert len(figures) == 1
    assert 3 < figures[0] < 40
    run_ranks(train_to, 1, DEBUG, str(tmp_path / "diffusion"), f"vae.from_pretrained={str(tmp_path / '2')!r}")
    assert len(losses(tmp_path / "diffusion")) == STEPS


def test_frame_masks_depend_on_the_sample(tmp_path: Path, alone: list[float]) -> None:
    """The frames kept clean depend on the sample, not on the rank, and they change the losses."""
    masked = ("plugin=ddp", *CLIPPED, "mask_ratios={'image_head': 0.5, 'random': 0.4}")
    run_ranks(train_to, 1, DEBUG, str(tmp_path / "one"), *masked)
    run_ranks(train_to, 2, DEBUG, str(tmp_path / "two"), *masked)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    masked_losses = losses(tmp_path / "one")
    assert max(abs(one - other) for one, other in zip(masked_losses, alone, strict=True)) > 1e-2


def test_conditioning_frames_depend_on_the_sample(tmp_path: Path) -> None:
    """The losses do not depend on ranks, plugin or the other samples of a micro-batch and their conditioning frames."""
    config = str(ROOT / "configs/stdit3/train/debug_1_3.py")
    short = ("dataset.clips=12", "save_every=0", f"text_encoder.from_pretrained={shared_bert()!r}")
    alone = ("plugin=ddp", "micro_batches=4", "batch_size=1", *short)
    run_ranks(train_to, 1, config, str(tmp_path / "one"), *alone)
    shared = ("plugin=zero2", "micro_batches=2", "batch_size=2", *short)
    run_ranks(train_to, 2, config, str(tmp_path / "two"), *shared)
    run_ranks(train_to, 1, config, str(tmp_path / "none"), *alone, "mask_ratios=None")
    one, two, none = (losses(tmp_path / name) for name in ("one", "two", "none"))
    assert two == pytest.approx(one, rel=1e-5)
    assert max(abs(loss - unconditioned_loss) for loss, unconditioned_loss in zip(one, none, strict=True)) > 1e-3
