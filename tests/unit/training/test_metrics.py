"""The records that a run writes, and those it removes when it resumes."""

import errno
import json
import logging
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from opensora.errors import ConfigError
from opensora.training.metrics import Metrics, read
from opensora.training.step_stats import StepRecord, StepStats, StepTotals


def record(step: int, loss: float = 1.5) -> StepRecord:
    totals = StepTotals(loss, 96, {"0.3-0.4": loss}, {}, 0, False)
    return StepRecord(step, totals, grad_norm=0.5, lr=1e-3, seconds=0.25, stats=StepStats())


def open_metrics(folder: Path, start_step: int = 0, main: bool = True, wandb: bool = False) -> Metrics:
    return Metrics(folder, start_step, steps=10, main=main, wandb=wandb, config={"lr": 1})


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    caplog.set_level(logging.INFO, "opensora")
    return caplog


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) pairs that TensorBoard would show, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_one_json_object_per_step_with_every_promised_key(tmp_path: Path, messages: Any) -> None:
    metrics = open_metrics(tmp_path)
    metrics.log(record(1))
    metrics.log_validation(1, {"psnr": 20.5, "loss_bin/0.0-0.1": 0.25})
    metrics.log(record(2))
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "step": 1,
        "loss": 1.5,
        "grad_norm": 0.5,
        "lr": 1e-3,
        "tokens": 96,
        "seconds": 0.25,
        "loss_per_bin": {"0.3-0.4": 1.5},
        "skipped": 0,
    }
    assert lines[1] == {"step": 1, "validation": {"psnr": 20.5, "loss_bin/0.0-0.1": 0.25}}
    assert lines[2]["step"] == 2
    plain = [text.getMessage() for text in messages.records]
    assert plain[0].startswith("step 1/10  loss 1.5000  norm 0.50  0.25 s/step  384 tokens/s  ")
    assert plain[1] == "step 1 validation: psnr 20.5000"


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    metrics = open_metrics(tmp_path)
    metrics.log(record(1, loss=1.5))
    metrics.log(record(2, loss=1.25))
    metrics.log_validation(2, {"psnr": 20.5})
    metrics.close()
    written = scalars(tmp_path)
    assert written["loss"] == [(1, 1.5), (2, 1.25)]
    assert written["loss_bin/0.3-0.4"] == [(1, 1.5), (2, 1.25)]
    assert written["validation/psnr"] == [(2, 20.5)]
    assert {"grad_norm", "lr", "seconds"} <= written.keys()


def test_resume_takes_back_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    metrics = open_metrics(tmp_path)
    for step in (1, 2, 3, 4):
        metrics.log(record(step, loss=float(step)))
    metrics.log_validation(4, {"psnr": 1.0})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # cut off by a kill
    resumed = open_metrics(tmp_path, start_step=2)
    assert [each["step"] for each in read(tmp_path / "metrics.jsonl")] == [1, 2]
    resumed.log(record(3, loss=30.0))
    resumed.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["loss"] for line in text.splitlines()] == [1.0, 2.0, 30.0]
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_skipped_steps_are_counted_and_valid_json(tmp_path: Path, messages: Any) -> None:
    metrics = open_metrics(tmp_path)
    metrics.log(record(1))
    sample = {"place": 0, "row": 7, "loss": float("inf"), "level": 0.25}
    metrics.log_trouble(
        2, {"what": "the loss is nan", "did": "skip", "skipped": 1, "loss": math.nan, "samples": [sample]}
    )
    metrics.log(replace(record(3), skipped=1))
    metrics.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    trouble = read(tmp_path / "metrics.jsonl")[1]["trouble"]
    assert math.isnan(float(trouble["loss"]))
    assert trouble["samples"] == [{**sample, "loss": "inf"}]
    assert scalars(tmp_path)["skipped"] == [(2, 1), (3, 1)]
    assert "step 2: the loss is nan; not made (1 so far)" in [each.getMessage() for each in messages.records]


def test_a_cut_off_line_is_left_out_by_readers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read(path) == []
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read(path) == [{"step": 1, "loss": 2.0}]


def test_other_ranks_write_nothing(tmp_path: Path, messages: Any) -> None:
    metrics = open_metrics(tmp_path, main=False, wandb=True)
    metrics.log(record(1))
    metrics.log_validation(1, {"psnr": 1.0})
    metrics.close()
    assert list(tmp_path.iterdir()) == []
    assert not messages.records


def test_wandb_gets_the_config_and_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append(("log", (values, step))), finish=lambda: calls.append(("finish", None))
    )

    def init(**arguments: Any) -> Any:
        calls.append(("init", arguments))
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    metrics = open_metrics(tmp_path, wandb=True)
    metrics.log(record(3))
    metrics.close()
    assert [name for name, _ in calls] == ["init", "log", "finish"]
    assert calls[0][1]["config"] == {"lr": 1}
    assert calls[0][1]["name"] == tmp_path.name
    values, step = calls[1][1]
    assert (values["loss"], values["loss_bin/0.3-0.4"], step) == (1.5, 1.5, 3)


def test_a_run_that_fails_keeps_its_last_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard is flushed every two minutes by itself; wandb is not waited for."""
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=lambda **_: SimpleNamespace(log=lambda *_, **__: None))
    )
    metrics = open_metrics(tmp_path, wandb=True)
    for step in range(1, 4):
        metrics.log(record(step))
    metrics.close(failed=True)
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [1, 2, 3]


def test_missing_wandb_is_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"'wandb'.*True.*pip install wandb"):
        open_metrics(tmp_path, wandb=True)


def test_full_disk_warns_once_and_run_goes_on(tmp_path: Path, messages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next save reports it with the remedy, and may find room again; half a line hides no whole one."""
    metrics = open_metrics(tmp_path)
    metrics.log(record(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(Path, "open", refuse)
        full.setattr(metrics.board, "add_scalar", refuse)
        metrics.log(record(2))
        metrics.log_trouble(3, {"what": "the loss is nan", "skipped": 1})
    metrics.log(record(4))
    monkeypatch.setattr(metrics.board, "close", refuse)
    metrics.close()
    assert [each["step"] for each in read(tmp_path / "metrics.jsonl")] == [1, 4]
    warnings = [each.getMessage() for each in messages.records if each.levelno == logging.WARNING]
    assert [line for line in warnings if "cannot be written" in line] == [
        f"{tmp_path}/metrics.jsonl: cannot be written ([Errno 28] No space left on device); training goes on, without "
        "some of its numbers"
    ]
