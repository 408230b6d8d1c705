"""A run folder that an earlier version wrote is taken up: its state bit for bit, its steps as they went on then."""

import logging
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from opensora.config import load
from opensora.parallel import world
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train
from tests.dist import run_ranks
from tests.golden.records import GOLDEN, RUNS, SAVED, read_records, read_steps

RTOL = {"stdit_bf16": 2e-3, "vae_discriminator": 1e-4}  # ten times what AVX2 and AVX-512 kernels differ by


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # the latents of a debug run, and captions that are longer than its text encoder takes
        expected = any(words in record.getMessage() for words in ("from_pretrained", "model_max_length"))
        if record.levelno >= logging.WARNING and not expected:
            self.warnings.append(record.getMessage())


def resume(name: str, run_dir: str, save_as: int | None) -> tuple[int, list[str]]:
    """Resume and save at once, as after step `save_as`, or go on to the end; (steps done at the start, warnings)."""
    lines = Lines()
    logging.getLogger("opensora").addHandler(lines)
    config = str(GOLDEN / f"runs/{name}.py")
    run = load(config, [f"run_dir={run_dir!r}", "log_every=1"], TrainRun).run
    training = build_training(run, world.current(), config)
    try:
        if save_as is None:
            train(training)
        else:
            training.checkpointer.save(save_as, [])
            training.checkpointer.finish()
    finally:
        training.metrics.close()
        logging.getLogger("opensora").removeHandler(lines)
    return training.start_step, lines.warnings


@pytest.fixture(params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run_dir(tmp_path: Path, name: str) -> Path:
    with tarfile.open(GOLDEN / f"runs/{name}.tar.xz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def tensors(folder: Path, scratch: Path) -> dict[str, Any]:
    """Everything that a checkpoint holds: the training state and the weights next to it, by name."""
    dcp_to_torch_save(folder / "state", scratch)
    state = torch.load(scratch, weights_only=False)
    weights = {file.parent.name: load_file(file) for file in folder.glob("weights/*/model.safetensors")}
    return flat({"state": state, "weights": weights})


def flat(nested: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(nested, dict | list):
        return {prefix: nested}
    pairs = nested.items() if isinstance(nested, dict) else enumerate(nested)
    return {key: each for name, inside in pairs for key, each in flat(inside, f"{prefix}/{name}").items()}


def test_earlier_run_folder_is_loaded_bit_for_bit(tmp_path: Path, name: str, run_dir: Path) -> None:
    start, warnings = run_ranks(resume, 1, name, str(run_dir), SAVED + 1)[0]
    assert (start, warnings) == (SAVED, [])
    before, after = (
        tensors(run_dir / f"checkpoints/step-{step:08d}", tmp_path / f"{step}.pt") for step in (SAVED, SAVED + 1)
    )
    assert after.keys() == before.keys()
    assert sum(isinstance(value, torch.Tensor) for value in before.values()) > 100
    for key, value in before.items():
        torch.testing.assert_close(
            after[key], value, rtol=0, atol=0, equal_nan=True, msg=lambda text, k=key: f"{k}: {text}"
        )


def test_earlier_run_goes_on_as_it_did(name: str, run_dir: Path) -> None:
    start, warnings = run_ranks(resume, 1, name, str(run_dir), None)[0]
    assert (start, warnings) == (SAVED, [])
    expected = read_records(GOLDEN / f"runs/{name}.txt")
    records = read_steps(run_dir)[SAVED:]
    assert [record.step for record in records] == [record.step for record in expected]
    for column in ("loss", "grad_norm"):
        actual, golden = ([getattr(record, column) for record in each] for each in (records, expected))
        assert actual == pytest.approx(golden, rel=RTOL[name]), column
