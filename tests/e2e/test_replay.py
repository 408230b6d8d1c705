"""`opensora replay` repeats a step of a run, compares its numbers and names the rows that are not finite."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.config import load
from opensora.parallel import world
from opensora.schema import TrainRun
from opensora.training import run_folder
from opensora.training.diffusion_task import DiffusionTask
from opensora.training.metrics import read
from opensora.training.replay import Replay, build_replay, describe_difference, replay, rounding
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch
from tests.dist import run_ranks
from tests.support.command import ROOT, TRAIN
from tests.support.text_models import shared_bert

STEPS = 6
BUCKETS = "configs/stdit2/train/debug_buckets.py"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints of steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("run")
    run_ranks(train_here, 1, str(folder))
    return folder


def train_here(folder: str, config: str = TRAIN, *overrides: str) -> None:
    from opensora.training.build import build_training
    from opensora.training.loop import train

    # everything random is on: several rows per micro-batch, dropped captions and frame masks
    keys = [
        f"run_dir={folder!r}",
        f"text_encoder.from_pretrained={shared_bert()!r}",
        "keep_last=9",
        "mask_ratios={'image_head': 0.5}",
        "model.class_dropout_prob=0.5",
        *overrides,
    ]
    t = build_training(load(str(ROOT / config), keys, TrainRun).run, world.current(), config)
    train(t)
    t.metrics.close()


def logged(run_dir: Path, step: int) -> tuple[float, float]:
    return next(
        (r["loss"], r["grad_norm"]) for r in read(run_dir / "metrics.jsonl") if r["step"] == step and "loss" in r
    )


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def test_replayed_step_has_the_logged_numbers(
    run_dir: Path, opensora: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step starts from the checkpoint before it; the run folder is neither locked nor changed."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("a replay takes no lock")

    monkeypatch.setattr(run_folder, "lock", refuse)
    before = contents(run_dir)
    assert opensora("replay", str(run_dir), "step=5", "gradients=true") == 0
    assert contents(run_dir) == before
    printed = capsys.readouterr()
    loss, norm = logged(run_dir, 5)
    assert f"loss {loss!r}, logged {loss!r}: the same, bit for bit" in printed.out
    assert f"gradient norm {norm!r}, logged {norm!r}: the same, bit for bit" in printed.out
    assert "from the state after step 4" in printed.out
    rows = re.findall(r"│ (\d+) +│ (\d+) +│ (0\.\d+) +│ (\d\.\d+) +│ (\d\.\d+) +│ a", printed.out)
    assert [int(sample_id) for sample_id, *_ in rows] == [0, 1, 2, 3]
    assert sum(float(each[3]) for each in rows) / 4 == pytest.approx(loss, abs=1e-6)
    assert all(float(each[4]) > norm / 4 for each in rows)
    assert "not finite" not in printed.out


def test_steps_after_the_checkpoint_are_repeated(run_dir: Path) -> None:
    replayed = run_ranks(again, 1, str(run_dir), 4)[0]
    assert (replayed.start, replayed.step) == (2, 4)
    assert (replayed.loss, replayed.grad_norm) == logged(run_dir, 4)


def test_two_ranks_with_another_plugin_replay_the_step(run_dir: Path) -> None:
    one, two = run_ranks(again, 2, str(run_dir), 5, "plugin=ddp")
    assert one == two
    assert (one.loss, one.grad_norm) == pytest.approx(logged(run_dir, 5), rel=1e-5)
    assert [each["place"] for each in one.samples] == [0, 1, 2, 3]
    assert one.suspects() == []


def test_replay_starts_at_step_0_without_an_earlier_checkpoint(run_dir: Path) -> None:
    replayed = run_ranks(again, 1, str(run_dir), 1)[0]
    assert replayed.start == 0
    assert (replayed.loss, replayed.grad_norm) == logged(run_dir, 1)


def train_shared(folder: str, *overrides: str) -> None:
    world.split_sequence_groups(2)
    train_here(folder, TRAIN, "plugin=zero2-seq", "sp_size=2", *overrides)


def again_shared(folder: str, step: int, *changes: str) -> Replay:
    world.split_sequence_groups(2)
    return again(folder, step, *changes)


def test_a_run_whose_ranks_share_each_sample(
    tmp_path: Path, opensora: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A replay on 2 ranks is bit-equal, one on 1 rank equal up to rounding; an sp_size that does not fit is refused."""
    run_ranks(train_shared, 2, str(tmp_path))
    one, two = run_ranks(again_shared, 2, str(tmp_path), 4)
    assert one == two
    assert (one.start, one.loss, one.grad_norm) == (2, *logged(tmp_path, 4))
    assert [each["place"] for each in one.samples] == [0, 1, 2, 3]
    [alone] = run_ranks(again, 1, str(tmp_path), 4, "sp_size=1")
    assert (alone.loss, alone.grad_norm) == pytest.approx(logged(tmp_path, 4), rel=1e-5)
    assert opensora("replay", str(tmp_path), "step=4") == 2
    assert "'sp_size': found 2" in capsys.readouterr().err


def test_a_run_of_many_sizes(tmp_path: Path, opensora: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """Steps of pictures and of clips; the config is read from the run's JSON."""
    run_ranks(train_here, 1, str(tmp_path), BUCKETS)
    tokens = {r["step"]: r["tokens"] for r in read(tmp_path / "metrics.jsonl") if "loss" in r}
    assert len(set(tokens.values())) > 1
    for step in range(1, STEPS + 1):
        assert opensora("replay", str(tmp_path), f"step={step}") == 0
        printed = capsys.readouterr()
        loss, norm = logged(tmp_path, step)
        assert f"loss {loss!r}, logged {loss!r}: the same, bit for bit" in printed.out
        assert f"gradient norm {norm!r}, logged {norm!r}: the same, bit for bit" in printed.out
        assert "with the new value" not in printed.err  # no key is reported as changed


def test_key_that_changed_after_the_checkpoint_is_reported(
    run_dir: Path, opensora: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line changes the seed."""
    assert opensora("replay", str(run_dir), "step=5", "seed=7") == 0
    printed = capsys.readouterr()
    assert f"{run_dir}: seed: 42 -> 7; the step is made with the new value" in printed.err
    assert printed.err.count("with the new value") == 1
    assert "DIFFERENT" in printed.out


def again(run_dir: str, step: int, *changes: str) -> Replay:
    run = load(f"{run_dir}/config.json", [f"run_dir={run_dir!r}", *changes], TrainRun).run
    return replay(build_replay(run, world.current(), run_dir, step), step)


@pytest.fixture(params=["loss", "gradient"])
def spoilt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The loss or only the gradient of the sample at place 2 of step 3 is not finite."""
    plain = DiffusionTask.loss

    def spoilt_loss(self: DiffusionTask, model: Callable[..., Any], batch: Batch) -> MicroBatchLoss:
        loss = plain(self, model, batch)
        losses = list(loss.loss_B)
        if batch.step == 2 and 2 in batch.sample_ids:
            index = batch.sample_ids.index(2)
            zero = losses[index] - losses[index].detach()
            # the root's slope at 0 is infinite
            losses[index] = losses[index] * math.nan if request.param == "loss" else losses[index] + zero.sqrt()
        return replace(loss, loss_B=torch.stack(losses))

    monkeypatch.setattr(DiffusionTask, "loss", spoilt_loss)
    return request.param


def test_replay_of_a_stopped_run_names_the_row(
    tmp_path: Path, spoilt: str, opensora: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert opensora("train", str(ROOT / TRAIN), f"run_dir={tmp_path}") == 1
    errors = capsys.readouterr().err
    assert f"look at the clips of that step with `opensora replay {tmp_path} step=3`" in errors
    trouble = read(tmp_path / "metrics.jsonl")[-1]["trouble"]
    row = trouble["samples"][2]["row"]
    assert opensora("replay", str(tmp_path), "step=3") == 0
    report = capsys.readouterr().out
    quantity = "loss is nan" if spoilt == "loss" else "gradient norm is (nan|inf)"
    assert re.search(rf"the run does not make this step: the {quantity}", report)
    assert re.findall(r"not finite: .*", report) == [
        f"not finite: the {spoilt} of manifest row {row} (counted from 0), place 2"
    ]
    assert report.count("the same, bit for bit") == 2


def test_numbers_are_compared_in_words() -> None:
    assert describe_difference(1.5, 1.5, 0) == describe_difference(math.nan, math.nan, 0) == "the same, bit for bit"
    assert describe_difference(1.0, 1.0 + 5e-7, 1e-6) == "the same but for rounding: 5.0e-07 apart"
    assert describe_difference(1.0, 1.1, 1e-2).startswith("DIFFERENT: 9.1e-02")
    assert describe_difference(math.nan, 1.0, 1e-2).startswith("DIFFERENT")


@pytest.mark.parametrize(
    ("device", "dtype", "deterministic", "tolerance"),
    [
        ("cpu", "fp32", False, 1e-6),
        ("cpu", "bf16", False, 1e-4),
        ("cuda", "fp32", False, 1e-4),
        ("cuda", "bf16", False, 1e-2),
        ("npu", "bf16", True, 1e-4),
        ("cuda", "fp32", True, 1e-6),
    ],
)
def test_rounding_depends_on_device_dtype_and_determinism(
    device: str, dtype: str, deterministic: bool, tolerance: float
) -> None:
    keys = [f"dtype={dtype}", f"deterministic={deterministic}"]
    assert rounding(load(str(ROOT / TRAIN), keys, TrainRun).run, device) == tolerance


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["step=7"], "step=7 found; allowed: 1 to steps=6"),
        (["step=0"], "step=0 found; allowed: 1 to steps=6"),
        ([], "key 'step': found None; allowed: a whole number from 1; add step=N"),
        (["step=2", "gradients=3"], "key 'gradients': found 3; allowed: true or false"),
        (["step=2", "stepz=3"], "key 'stepz': unknown"),
    ],
)
def test_mistakes_are_sentences(
    run_dir: Path, opensora: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert opensora("replay", str(run_dir), *words) == 2
    assert expected in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, opensora: Callable[..., int], capsys: Any) -> None:
    assert opensora("replay", str(tmp_path), "step=1") == 2
    assert "config.json" in capsys.readouterr().err
