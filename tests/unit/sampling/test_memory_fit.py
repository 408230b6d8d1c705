"""`max_memory` of a run: the memory that is estimated, and the settings that come out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from opensora.errors import ConfigError
from opensora.planning.sampling_memory import Choice, SamplingMemory
from opensora.sampling import memory_fit
from opensora.sampling.build import SamplerBuilder, plan_sampling
from opensora.schema import SampleRun

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
KEYS: dict[str, Any] = {
    "vae": Config.fromfile(str(ROOT / "configs/_base_/tiny_vae.py")).vae.to_dict(),
    "model": {"type": "DiT", "hidden_size": 24, "depth": 1, "num_heads": 2},
    "text_encoder": {"type": "classes", "num_classes": 2},
    "scheduler": {"type": "rflow", "cfg_scale": 1.0},
    "prompt": ["1"],
    "num_frames": 5,
    "image_size": (16, 16),
    "fps": 8.0,
    "dtype": "fp32",
}


def run(**changes: Any) -> SampleRun:
    return SampleRun(**{**KEYS, **changes})


def test_the_choice_reaches_the_autoencoder_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[SamplingMemory, int, Choice]] = []

    def choose(memory: SamplingMemory, limit: int, start: Choice) -> tuple[Choice, dict[str, int]]:
        made.append((memory, limit, start))
        return Choice(tiling=True), {"decoding": 1}

    monkeypatch.setattr(memory_fit, "choose", choose)
    builder = SamplerBuilder(CPU)
    for _ in range(2):
        sampler, _ = builder.build(plan_sampling(run(max_memory="2GB"), "sample.py"))
        assert sampler.codec.vae.use_tiling
    (memory, limit, start) = made[0]
    assert len(made) == 1
    assert (memory.size, memory.copies, memory.dtype, memory.on_host) == ((5, 16, 16), 1, torch.float32, True)
    assert (limit, start) == (2 * 10**9, Choice())


def test_guidance_doubles_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []

    def choose(memory: SamplingMemory, limit: int, start: Choice) -> tuple[Choice, dict[str, int]]:
        copies.append(memory.copies)
        return start, {}

    monkeypatch.setattr(memory_fit, "choose", choose)
    for scale in (1.0, 3.0):
        plan = plan_sampling(run(max_memory=10**10, scheduler={"type": "rflow", "cfg_scale": scale}), "sample.py")
        SamplerBuilder(CPU).build(plan)
    assert copies == [1, 2]


def test_what_fits_is_left_alone_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "opensora")
    sampler, _ = SamplerBuilder(CPU).build(plan_sampling(run(max_memory="100GB"), "sample.py"))
    assert not sampler.codec.vae.use_tiling
    assert "max_memory 100.00 GB: estimated loading 1.00 GB" in caplog.text
    assert "chosen: nothing, all fits (not model_cpu_offload: the device is the host)" in caplog.text


def test_too_little_and_no_size_end_the_run() -> None:
    with pytest.raises(ConfigError, match=r"key 'max_memory': found 0\.90 GB; needed: 1\.0"):
        SamplerBuilder(CPU).build(plan_sampling(run(max_memory="900MB"), "sample.py"))
    with pytest.raises(ConfigError, match=r"sample\.py: key 'max_memory': found 'much'; allowed: a size such as"):
        plan_sampling(run(max_memory="much"), "sample.py")
