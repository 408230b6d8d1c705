"""Exported weights are the same numbers, rounded once, with their config."""

from pathlib import Path

import pytest
import torch

from opensora.models.read_weights import read_weights
from opensora.models.weights import read_config, save_weights
from tools.weights.export import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    state = {"a": torch.tensor([1.0, 1 / 3]), "steps": torch.tensor([7])}
    return save_weights(tmp_path / "source", state, {"type": "Thing", "latent_shift": [0.5]})


def test_half_precision_copy(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(source), str(tmp_path / "out"), "--dtype", "fp16"]) == 0
    copy = read_weights(tmp_path / "out")
    assert copy["a"].dtype == torch.float16
    assert copy["a"].tolist() == [1.0, torch.tensor(1 / 3).half().item()]
    assert copy["steps"].tolist() == [7]
    assert copy["steps"].dtype == torch.int64
    assert read_config(tmp_path / "out") == {"type": "Thing", "latent_shift": [0.5]}
    assert "fp16" in capsys.readouterr().out


def test_a_copy_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    run = {"fps": 8, "origin": {"folder": str(tmp_path), "run_dir": str(tmp_path), "local": []}}
    source = save_weights(tmp_path / "source", {"a": torch.ones(1)}, {"type": "Thing", "run": run})
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert read_config(tmp_path / "out") == {"type": "Thing", "run": {"fps": 8}}


def test_nan_is_named_as_such(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = save_weights(tmp_path / "source", {"a": torch.tensor([float("nan")])}, {})
    assert main([str(source), str(tmp_path / "out")]) == 2
    assert "1 of 1 tensors hold NaN or infinity: a" in capsys.readouterr().err


def test_a_value_too_large_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = save_weights(tmp_path / "source", {"a": torch.tensor([1e6])}, {})
    assert main([str(source), str(tmp_path / "out"), "--dtype", "fp16"]) == 2
    assert "fp16" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_missing_source(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "none" in capsys.readouterr().err
