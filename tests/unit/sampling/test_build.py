"""Filling a sampling run's gaps from the files next to the weights."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from opensora.errors import ConfigError
from opensora.sampling.build import build_sampler, plan_sampling
from opensora.sampling.shortcuts import Shortcuts
from opensora.schema import SampleRun

ROOT = Path(__file__).resolve().parents[3]
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
    with pytest.raises(ConfigError, match=r"sample\.py: .*'model'.*missing.*load="):
        plan_sampling(run, "sample.py")


def test_config_type_is_kept_with_released_folder(tmp_path: Path) -> None:
    model = {"type": "STDiT3", "hidden_size": 32, "depth": 1, "num_heads": 2}
    run = SampleRun(load=str(released_folder(tmp_path)), model=model, **GIVEN)  # type: ignore[arg-type]
    plan = plan_sampling(run, "sample.py")
    assert plan.parts["model"] == model
    assert plan.parts["scheduler"] == {"type": "rflow"}


def test_length_that_the_autoencoder_does_not_hold() -> None:
    """Every request is looked at, before any weight is read or made."""
    vae = Config.fromfile(str(ROOT / "configs/_base_/tiny_vae.py")).vae.to_dict()
    parts = {"vae": vae, "model": {"type": "STDiT"}, "num_frames": 4, "dtype": "fp32"}
    run = SampleRun(**{**GIVEN, **parts})  # type: ignore[arg-type]
    plan = plan_sampling(run, "sample.py")
    with pytest.raises(ConfigError, match=r"num_frames: found 4; allowed: 3 or 5 frames, which CausalVAEModel holds"):
        build_sampler(plan, torch.device("cpu"))
    plan.requests.insert(0, replace(plan.requests[0], prompt="b", num_frames=5))
    with pytest.raises(ConfigError, match=r"num_frames of prompt 'a': found 4; allowed: 3 or 5 frames"):
        build_sampler(plan, torch.device("cpu"))


def test_config_next_to_a_file_of_weights(tmp_path: Path) -> None:
    model = {"type": "STDiT3", "hidden_size": 32, "depth": 1, "num_heads": 2}
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps(model))
    run = SampleRun(load=str(tmp_path / "model.safetensors"), **GIVEN)  # type: ignore[arg-type]
    assert plan_sampling(run, "s.py").parts["model"] == model


def test_weights_of_an_autoencoder_are_no_denoiser(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"type": "CausalVAEModel"}))
    run = SampleRun(load=str(tmp_path), **GIVEN)  # type: ignore[arg-type]
    expected = f"s.py: key 'load': {tmp_path} holds an autoencoder (CausalVAEModel, as its config.json says); allowed: a denoiser"
    with pytest.raises(ConfigError, match=re.escape(expected)):
        plan_sampling(run, "s.py")


def test_parts_of_a_run_are_looked_for_and_missing_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was trained in /gone, with parts/vae; now it lies in tmp_path/runs/a."""
    weights = tmp_path / "runs/a/checkpoints/step-00000001/weights/model"
    weights.mkdir(parents=True)
    origin = {"folder": "/gone", "run_dir": "/gone/runs/a", "local": ["vae.from_pretrained"]}
    model = {"type": "STDiT3", "hidden_size": 32, "depth": 1, "num_heads": 2}
    vae = {"type": "CausalVAEModel", "from_pretrained": "parts/vae"}
    (weights / "config.json").write_text(json.dumps({**model, "run": {"vae": vae, "origin": origin}}))
    run = SampleRun(load=str(tmp_path / "runs/a"), **{**GIVEN, "vae": None})  # type: ignore[arg-type]
    monkeypatch.setattr("opensora.sampling.build.resolve_weights", lambda path, ema: weights)
    with pytest.raises(ConfigError) as caught:
        plan_sampling(run, "s.py")
    message = (
        "vae.from_pretrained='parts/vae', which is not there any more; looked for: /gone/parts/vae or parts/vae or "
    )
    assert f"{message}{tmp_path / 'parts/vae'}; give vae.from_pretrained=PATH" in str(caught.value)
    other = SampleRun(load=str(tmp_path / "runs/a"), **{**GIVEN, "vae": {"from_pretrained": "other/vae"}})  # type: ignore[arg-type]
    assert plan_sampling(other, "s.py").parts["vae"]["from_pretrained"] == "other/vae"
    (tmp_path / "parts/vae").mkdir(parents=True)
    assert plan_sampling(run, "s.py").parts["vae"]["from_pretrained"] == str(tmp_path / "parts/vae")


def test_other_classes_than_the_model_was_trained_on_are_refused() -> None:
    vae = Config.fromfile(str(ROOT / "configs/_base_/tiny_vae.py")).vae.to_dict()
    model = {"type": "DiT", "hidden_size": 24, "depth": 1, "num_heads": 2, "condition": "label_3"}
    parts = {
        "vae": vae,
        "model": model,
        "text_encoder": {"type": "classes", "num_classes": 2},
        "prompt": ["1"],
        "dtype": "fp32",
    }
    run = SampleRun(**{**GIVEN, **parts})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'model\.condition'.*label_3.*label_2"):
        build_sampler(plan_sampling(run, "sample.py"), torch.device("cpu"))


def test_shortcuts_are_checked_with_the_plan_and_change_the_settings() -> None:
    vae = Config.fromfile(str(ROOT / "configs/_base_/tiny_vae.py")).vae.to_dict()
    model = {"type": "STDiT", "hidden_size": 24, "depth": 1, "num_heads": 2}
    keys = {**GIVEN, "vae": vae, "model": model, "dtype": "fp32"}
    changes = {"null_every": 2, "cache": {"type": "TeaCache"}, "guidance_interval": (0.2, 0.8)}
    plans = [plan_sampling(SampleRun(**keys, **more), "sample.py") for more in ({}, changes)]  # type: ignore[arg-type]
    (exact, exact_settings), (fast, settings) = (build_sampler(plan, torch.device("cpu")) for plan in plans)
    assert exact.shortcuts == Shortcuts()
    assert fast.shortcuts is plans[1].shortcuts
    assert settings == replace(exact_settings, config_hash=settings.config_hash)
    assert settings.config_hash != exact_settings.config_hash
    with pytest.raises(ConfigError, match=r"guidance_interval.*\(0.8, 0.2\)"):
        plan_sampling(SampleRun(**keys, guidance_interval=(0.8, 0.2)), "sample.py")  # type: ignore[arg-type]
