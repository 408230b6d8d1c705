"""The folder of a run: what changed since, whose it is, and which weights a path means."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opensora.config import load
from opensora.errors import CheckpointError, WeightsError
from opensora.parallel import world
from opensora.registry import PLUGINS, build
from opensora.schema import TrainRun
from opensora.training.ema import Ema
from opensora.training.keep import RunFolder, resolve_part, resolve_weights
from tests.dist import one_rank

ROOT = Path(__file__).resolve().parents[3]
RUN = load(str(ROOT / "configs/stdit/train/debug.py"), [], TrainRun).run

HOLD = """
import sys
from pathlib import Path
from opensora.training.keep import lock
held, holder = lock(Path(sys.argv[1]))
print("held" if held is not None and holder is None else "refused", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with one_rank():
        yield


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    return caplog


def open_folder(path: Path, value: float = 0.0, decay: float | None = 0.5, **changes: Any) -> RunFolder:
    """The folder of a run that trains two numbers."""
    folder = RunFolder(replace(RUN, run_dir=str(path), **changes), world.current())
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, value)
    engine = build(PLUGINS, {"type": "ddp"}).apply(
        model, lambda params: torch.optim.AdamW(params, lr=0.1), dtype="fp32", grad_clip=0.0, world=world.current()
    )
    ema = None if decay is None else Ema(engine, decay)
    folder.attach(engine, ema, SimpleNamespace(config=lambda: {"type": "Two"}))  # type: ignore[arg-type]
    return folder


def weight(folder: RunFolder) -> float:
    return folder.engine.full_weights()["weight"][0, 0].item()


def test_resume_takes_over_weights_average_and_bad_rows(tmp_path: Path) -> None:
    first = open_folder(tmp_path, value=1.0)
    assert first.resume() == (0, [])
    with torch.no_grad():
        next(first.engine.masters())[1].fill_(3.0)
    first.ema.update()
    first.save(4, ["train.csv:3: bad"])
    again = open_folder(tmp_path, value=7.0)
    assert again.resume() == (4, ["train.csv:3: bad"])
    assert weight(again) == 3.0
    assert again.ema.weights()["weight"][0, 0].item() == 2.0
    step = tmp_path / "checkpoints/step-00000004"
    assert again.last_good() == str(step)
    assert load_file(step / "weights/model/model.safetensors")["weight"][0, 0] == 3.0
    assert load_file(step / "weights/ema/model.safetensors")["weight"][0, 0] == 2.0


def test_last_good_before_any_save(tmp_path: Path) -> None:
    assert open_folder(tmp_path).last_good() == "none yet"


def test_changed_keys_are_reported_with_both_values(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    open_folder(tmp_path).save(1, [])
    open_folder(tmp_path, seed=7, steps=99, log_every=5, num_workers=2).resume()
    told = [record.getMessage() for record in warnings.records if record.levelno == logging.WARNING]
    assert told == [f"{tmp_path}: 'seed' was 42 and is now 7; the run goes on with the new value"]


def test_an_unchanged_run_reports_nothing(tmp_path: Path, warnings: pytest.LogCaptureFixture) -> None:
    open_folder(tmp_path).save(1, [])
    open_folder(tmp_path).resume()
    assert not [record for record in warnings.records if record.levelno >= logging.WARNING]


def test_an_average_switched_on_or_off_between_starts(tmp_path: Path) -> None:
    """Off: the rest resumes. On: the checkpoint has none, which is a sentence, not a traceback."""
    open_folder(tmp_path / "with", value=1.0).save(2, [])
    assert open_folder(tmp_path / "with", decay=None, ema_decay=None).resume()[0] == 2
    open_folder(tmp_path / "without", decay=None, ema_decay=None).save(2, [])
    with pytest.raises(CheckpointError, match="step-00000002"):
        open_folder(tmp_path / "without").resume()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_belongs_to_one_run_until_that_is_gone(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    partial = tmp_path / "checkpoints/.partial-step-00000001"
    partial.mkdir(parents=True)  # what the other run is saving
    with pytest.raises(
        CheckpointError, match=rf"{tmp_path}: in use by another training run \(process {holder.pid} on "
    ):
        open_folder(tmp_path)
    assert partial.exists()
    holder.kill()
    holder.wait()
    open_folder(tmp_path)
    assert not partial.exists()


def test_weights_of_a_run_a_checkpoint_a_folder_and_a_file(tmp_path: Path) -> None:
    folder = open_folder(tmp_path, value=1.0)
    folder.save(1, [])
    folder.save(2, [])
    step = tmp_path / "checkpoints/step-00000002"
    assert resolve_weights(str(tmp_path), ema=True) == step / "weights/ema"
    assert resolve_weights(str(tmp_path), ema=False) == step / "weights/model"
    older = tmp_path / "checkpoints/step-00000001"
    assert resolve_weights(str(older), ema=True) == older / "weights/ema"
    assert resolve_weights(str(step / "weights/model"), ema=True) == step / "weights/model"
    file = step / "weights/model/model.safetensors"
    assert resolve_weights(str(file), ema=True) == file


def test_weights_of_a_run_without_an_average(tmp_path: Path) -> None:
    open_folder(tmp_path, decay=None, ema_decay=None).save(1, [])
    assert resolve_weights(str(tmp_path), ema=True) == tmp_path / "checkpoints/step-00000001/weights/model"


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file or folder; allowed: a run folder, a checkpoint or weights"):
        resolve_weights(str(tmp_path / "none"), ema=True)
    open_folder(tmp_path)
    with pytest.raises(WeightsError, match="the run has no checkpoint yet"):
        resolve_weights(str(tmp_path), ema=True)


def test_a_part_may_name_one_of_our_runs(tmp_path: Path) -> None:
    open_folder(tmp_path).save(1, [])
    part = resolve_part({"type": "X", "from_pretrained": str(tmp_path)})
    assert part == {"type": "X", "from_pretrained": str(tmp_path / "checkpoints/step-00000001/weights/ema")}
    for elsewhere in ("hub/name", None):
        assert resolve_part({"type": "X", "from_pretrained": elsewhere}) == {"type": "X", "from_pretrained": elsewhere}
