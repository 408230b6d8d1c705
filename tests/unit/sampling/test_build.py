"""Filling a sampling run's gaps from what lies beside the weights."""

import json
from pathlib import Path

import pytest

from opensora.errors import ConfigError
from opensora.sampling.build import plan_sampling
from opensora.schema import SampleRun

GIVEN = dict(
    vae={"type": "CausalVAEModel", "hidden_size": 32},
    text_encoder={"type": "minilm"},
    scheduler={"type": "rflow"},
    prompt=["a"],
    num_frames=5,
    image_size=(16, 16),
    fps=8.0,
)


def released_folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "STDiT3", "depth": 28}))
    return tmp_path


def test_a_folder_of_another_program_needs_the_models_type(tmp_path: Path) -> None:
    run = SampleRun(load=str(released_folder(tmp_path)), **GIVEN)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"sample\.py: key 'model': missing, and load=.* does not record it"):
        plan_sampling(run, "sample.py")


def test_the_configs_type_stands_beside_such_a_folder(tmp_path: Path) -> None:
    model = {"type": "STDiT3", "hidden_size": 32, "depth": 1, "num_heads": 2}
    run = SampleRun(load=str(released_folder(tmp_path)), model=model, **GIVEN)  # type: ignore[arg-type]
    plan = plan_sampling(run, "sample.py")
    assert plan.parts["model"] == model
    assert plan.parts["scheduler"] == {"type": "rflow"}
