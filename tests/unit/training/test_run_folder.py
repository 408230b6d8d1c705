"""The folder of a run: what changed since, whose it is, and which weights a path means."""

import errno
import logging
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opensora.config import load
from opensora.errors import CheckpointError, WeightsError
from opensora.models.weights import read_config
from opensora.parallel import dcp, world
from opensora.parallel.async_save import join_all
from opensora.parallel.engine import EngineOptions
from opensora.registry import PLUGINS, build
from opensora.schema import TrainRun
from opensora.training import run_folder as keep_module
from opensora.training.anomalies import AnomalyDetector
from opensora.training.checkpoint import resolve_part, resolve_weights
from opensora.training.ema import Ema
from opensora.training.run_folder import RESUME_SAFE_KEYS, RunFolder, claim_folder, differences
from tests.dist import one_rank

ROOT = Path(__file__).resolve().parents[3]
RUN = load(str(ROOT / "configs/stdit/train/debug.py"), [], TrainRun).run


def hold(folder: Path, full: bool, answers: Any) -> None:
    """Lock a folder and stay."""
    if full:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no byte can be written, as on a full disk
    file, holder = keep_module.lock(folder)
    answers.send("held" if file is not None and holder is None else "refused")
    signal.pause()


@contextmanager
def another_process(folder: Path, full: bool = False) -> Iterator[BaseProcess]:
    """A process that has the folder; a fork, because importing everything again takes seconds."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(folder, full, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.recv() == "held"
        yield process
    finally:
        process.kill()
        process.join()


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_rank():
        yield


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    return caplog


def open_folder(path: Path, value: float = 0.0, decay: float | None = 0.5, width: int = 2, **changes: Any) -> RunFolder:
    """The folder of a run that trains `width` numbers."""
    run = replace(RUN, run_dir=str(path), **changes)
    lock = claim_folder(run, world.current())
    model = torch.nn.Linear(width, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    engine = build(PLUGINS, {"type": "ddp"}).apply(
        model, EngineOptions(lambda params: torch.optim.AdamW(params, lr=0.1), "fp32", 0.0, world.current())
    )
    ema = None if decay is None else Ema(engine, decay)
    task: Any = SimpleNamespace(config=lambda: {"type": "Two"}, discriminator=None, measures_weights=False)
    return RunFolder(run, world.current(), engine, ema, task, AnomalyDetector(), lock)


def keep(folder: RunFolder, step: int, *bad_rows: str) -> None:
    """Save, and wait until it is on the disk."""
    folder.save(step, list(bad_rows))
    folder.finish()


def weight(folder: RunFolder) -> float:
    return folder.engine.gather_state_dict()["weight"][0, 0].item()


def test_resume_takes_over_weights_average_and_bad_rows(tmp_path: Path) -> None:
    first = open_folder(tmp_path, value=1.0)
    assert first.resume() == (0, [])
    with torch.no_grad():
        next(first.engine.master_shards())[1].fill_(3.0)
    first.ema.update()
    keep(first, 4, "train.csv:3: bad")
    again = open_folder(tmp_path, value=7.0)
    assert again.resume() == (4, ["train.csv:3: bad"])
    assert weight(again) == 3.0
    assert again.ema.weights()["weight"][0, 0].item() == 2.0
    step = tmp_path / "checkpoints/step-00000004"
    assert again.describe_latest() == str(step)
    assert load_file(step / "weights/model/model.safetensors")["weight"][0, 0] == 3.0
    assert load_file(step / "weights/ema/model.safetensors")["weight"][0, 0] == 2.0


def test_the_average_has_measurements_of_its_own(tmp_path: Path) -> None:
    folder = open_folder(tmp_path, value=1.0)
    with torch.no_grad():
        next(folder.engine.master_shards())[1].fill_(3.0)
    folder.ema.update()
    folder.task.measures_weights = True
    folder.task.config = lambda: {"measured": folder.engine.module.weight[0, 0].item()}
    keep(folder, 1)
    weights = tmp_path / "checkpoints/step-00000001/weights"
    assert read_config(weights / "model") == {"measured": 3.0}
    assert read_config(weights / "ema") == {"measured": 2.0}
    assert weight(folder) == 3.0


def test_last_good_before_any_save(tmp_path: Path) -> None:
    assert open_folder(tmp_path).describe_latest() == "none yet"


def test_changed_keys_are_reported_with_both_values(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    keep(open_folder(tmp_path), 1)
    open_folder(tmp_path, seed=7, steps=99, log_every=5, num_workers=2).resume()
    messages = [record.getMessage() for record in warnings.records if record.levelno == logging.WARNING]
    assert messages == [f"{tmp_path}: seed: 42 -> 7; the run goes on with the new value"]


def test_changed_number_of_rows_is_reported(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    folder = open_folder(tmp_path)
    folder.rows = "6 rows of which 6 are used"
    folder.resume()
    keep(folder, 1)
    same, other = open_folder(tmp_path), open_folder(tmp_path)
    same.rows, other.rows = folder.rows, "8 rows of which 7 are used"
    same.resume()
    other.resume()
    [message] = [record.getMessage() for record in warnings.records if record.levelno >= logging.WARNING]
    assert "has 8 rows of which 7 are used, and had 6 rows of which 6 are used when step 1" in message


def test_differences_name_the_values_that_differ() -> None:
    before = {"model": {"type": "STDiT", "depth": 6, "sizes": [1, 2]}, "seed": 1, "load": None}
    now = {"seed": 1, "model": {"sizes": [1, 3], "depth": 4, "type": "STDiT", "drop_path": None}, "load": None}
    assert list(differences(before, now)) == [
        "model.depth: 6 -> 4",
        "model.sizes: [1, 2] -> [1, 3]",
        "model.drop_path: not set -> None",
    ]


def test_changed_model_is_refused_with_its_difference(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    """No line says that the run goes on."""
    keep(open_folder(tmp_path), 1)
    other = open_folder(tmp_path, width=3, model={**(RUN.model or {}), "depth": 5})
    with pytest.raises(CheckpointError, match=r"does not fit this config, which differs in model\.depth: 2 -> 5; set"):
        other.resume()
    assert "goes on" not in warnings.text


def test_an_unchanged_run_reports_nothing(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    keep(open_folder(tmp_path), 1)
    open_folder(tmp_path).resume()
    assert not [record for record in warnings.records if record.levelno >= logging.WARNING]


def test_an_average_switched_on_or_off_between_starts(tmp_path: Path) -> None:
    """Off: the rest resumes. On: the checkpoint has none, which is a sentence, not a traceback."""
    keep(open_folder(tmp_path / "with", value=1.0), 2)
    assert open_folder(tmp_path / "with", decay=None, ema_decay=None).resume()[0] == 2
    keep(open_folder(tmp_path / "without", decay=None, ema_decay=None), 2)
    with pytest.raises(CheckpointError, match="step-00000002"):
        open_folder(tmp_path / "without").resume()


def test_folder_is_locked_by_one_run(tmp_path: Path) -> None:
    partial = tmp_path / "checkpoints/.partial-step-00000001"
    partial.mkdir(parents=True)  # what the other run is saving
    with another_process(tmp_path) as holder:
        with pytest.raises(CheckpointError, match=rf"{tmp_path}: .*process {holder.pid} on "):
            open_folder(tmp_path)
        assert partial.exists()
    open_folder(tmp_path)
    assert not partial.exists()


def test_weights_of_a_run_a_checkpoint_a_folder_and_a_file(tmp_path: Path) -> None:
    folder = open_folder(tmp_path, value=1.0)
    keep(folder, 1)
    keep(folder, 2)
    step = tmp_path / "checkpoints/step-00000002"
    assert resolve_weights(str(tmp_path), ema=True) == step / "weights/ema"
    assert resolve_weights(str(tmp_path), ema=False) == step / "weights/model"
    older = tmp_path / "checkpoints/step-00000001"
    assert resolve_weights(str(older), ema=True) == older / "weights/ema"
    assert resolve_weights(str(step / "weights/model"), ema=True) == step / "weights/model"
    file = step / "weights/model/model.safetensors"
    assert resolve_weights(str(file), ema=True) == file


def test_weights_of_a_run_without_an_average(tmp_path: Path) -> None:
    keep(open_folder(tmp_path, decay=None, ema_decay=None), 1)
    assert resolve_weights(str(tmp_path), ema=True) == tmp_path / "checkpoints/step-00000001/weights/model"


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"run folder.*checkpoint.*weights"):
        resolve_weights(str(tmp_path / "none"), ema=True)
    open_folder(tmp_path)
    with pytest.raises(WeightsError, match="no checkpoint"):
        resolve_weights(str(tmp_path), ema=True)


def test_a_part_may_name_one_of_our_runs(tmp_path: Path) -> None:
    keep(open_folder(tmp_path), 1)
    part = resolve_part({"type": "X", "from_pretrained": str(tmp_path)})
    assert part == {"type": "X", "from_pretrained": str(tmp_path / "checkpoints/step-00000001/weights/ema")}
    for elsewhere in ("hub/name", None):
        assert resolve_part({"type": "X", "from_pretrained": elsewhere}) == {"type": "X", "from_pretrained": elsewhere}


class Gate:
    """Stands in for the opening of a state's files: the writer waits here until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        monkeypatch.setattr(dcp, "open_file", self._open_file)

    def _open_file(self, path: Path, mode: str) -> Any:
        assert self.open.wait(60)
        return path.open(mode)


def test_background_save_is_not_changed_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that training changes is changed between the copy and the first byte on the disk."""
    folder, gate, bad_rows = open_folder(tmp_path, value=1.0), Gate(monkeypatch), ["train.csv:3: bad"]
    train_a_step(folder)
    before = {key: value.clone() for key, value in local(folder).items()}
    folder.save(1, bad_rows)
    train_a_step(folder)
    bad_rows.append("train.csv:4: bad")
    assert not (tmp_path / "checkpoints/step-00000001").exists()
    gate.open.set()
    folder.finish()
    again = open_folder(tmp_path, value=7.0)
    assert again.resume() == (1, ["train.csv:3: bad"])
    after = local(again)
    changed = [key for key, value in local(folder).items() if not torch.equal(value, before[key])]
    assert sorted(changed) == sorted(before)  # master, both moments, the step count and the average
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    step = tmp_path / "checkpoints/step-00000001/weights"
    for name, key in (("model", "master/weight"), ("ema", "ema/weight")):
        assert torch.equal(load_file(step / name / "model.safetensors")["weight"].flatten(), before[key])


def train_a_step(folder: RunFolder) -> None:
    with folder.engine.accumulating(last=True):
        folder.engine.backward(folder.engine.model(torch.ones(1, 2)).square().mean())
    folder.engine.grad_norm()
    folder.engine.update()
    folder.ema.update()


def local(folder: RunFolder) -> dict[str, torch.Tensor]:
    """Every number that a checkpoint holds."""
    return {key: getattr(value, "to_local", lambda v=value: v)() for key, value in folder._state().items()}


def test_next_save_waits_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock where a copy takes 2 s and writing it 5 s, which begins only when training waits for it."""
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    caplog.set_level(logging.INFO, "opensora")
    folder, clock, waits = open_folder(tmp_path), SimpleNamespace(now=0.0), threading.Event()
    copy, write, join = folder._copy, keep_module.checkpoint.save, folder._background.join

    def slow_copy(*args: Any) -> Any:
        clock.now += 2
        return copy(*args)

    def slow_write(*args: Any, **options: Any) -> Path:
        assert waits.wait(60)
        clock.now += 5
        return write(*args, **options)

    def watched_join() -> None:
        waits.set()
        join()
        waits.clear()

    monkeypatch.setattr(keep_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(keep_module.checkpoint, "save", slow_write)
    monkeypatch.setattr(folder, "_copy", slow_copy)
    monkeypatch.setattr(folder._background, "join", watched_join)
    assert [folder.save(step, []) for step in (1, 2, 3)] == [2, 7, 7]
    folder.finish()
    assert [record.getMessage() for record in caplog.records if " saved: " in record.getMessage()] == [
        f"step {step} saved: {tmp_path}/checkpoints/step-{step:08d} (training waited {waited} s of {took} s)"
        for step, waited, took in ((1, "2.00", "7.00"), (2, "7.00", "12.00"), (3, "7.00", "12.00"))
    ]


def test_thread_that_saves_takes_the_device_of_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new thread's current device is device 0: DCP would start a context there from every rank."""
    here, current, real = replace(world.current(), local_rank=3), threading.local(), dcp.open_file
    platform = SimpleNamespace(device=lambda local_rank: setattr(current, "device", local_rank))
    devices = []

    def note_device(path: Path, mode: str) -> Any:
        devices.append(getattr(current, "device", 0))
        return real(path, mode)

    monkeypatch.setattr(world, "current", lambda: here)
    monkeypatch.setattr(keep_module, "select", lambda name: platform)
    monkeypatch.setattr(dcp, "open_file", note_device)
    keep(open_folder(tmp_path), 1)
    assert set(devices) == {3}


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_while_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool) -> None:
    """Raised once, by the next call that waits; the save before is kept, and with room again the run goes on."""
    folder = open_folder(tmp_path, background_save=background)
    keep(folder, 1)
    real = dcp.open_file

    def fill(path: Path, mode: str) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(dcp, "open_file", fill)
    if background:
        folder.save(2, [])
        join_all()
        assert folder.save_failed()
    with pytest.raises(CheckpointError, match=r"disk is full.*step 2"):
        folder.save(3 if background else 2, [])
    assert not folder.save_failed()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    monkeypatch.setattr(dcp, "open_file", real)
    assert folder.describe_latest() == str(tmp_path / "checkpoints/step-00000001")
    keep(folder, 4)
    assert folder.describe_latest() == str(tmp_path / "checkpoints/step-00000004")


def test_the_last_good_checkpoint_is_the_one_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, gate = open_folder(tmp_path), Gate(monkeypatch)
    folder.save(1, [])
    threading.Timer(0.2, gate.open.set).start()
    assert folder.describe_latest() == str(tmp_path / "checkpoints/step-00000001")


def test_full_disk_does_not_stop_the_lock(tmp_path: Path) -> None:
    with another_process(tmp_path, full=True):
        pass


def test_file_system_without_locks_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(keep_module.fcntl, "lockf", refuse)
    open_folder(tmp_path)
    assert f"{tmp_path}: no locks on this file system" in warnings.text


def test_keys_that_may_change_on_resume() -> None:
    logged = ["save_every", "background_save", "log_every", "keep_last", "wandb", "profile_steps", "steps", "run_dir"]
    validated = ["validate_every", "validation_batches", "validation_levels", "validation_dataset"]
    previewed = ["preview_every", "preview_prompts", "preview_steps", "preview_ema"]
    skipped = ["on_nan", "spike_factor", "spike_window", "on_spike", "max_skips", "max_bad_rows"]
    placed = ["num_workers", "timeout_seconds", "grad_checkpoint", "sp_size", "sp_mode", "text_encoder_parallel"]
    stored = ["load_video_features", "load_text_features"]
    assert {*logged, *validated, *previewed, *skipped, *placed, *stored} <= RESUME_SAFE_KEYS
    assert not {"dataset", "model", "optimizer", "seed", "batch_size", "micro_batches", "dtype"} & RESUME_SAFE_KEYS
