"""The quality of a run's autoencoder on its own clips, measured without an effect on the run."""

import random
import shlex
from typing import Any

import numpy as np
import pytest
import torch

from opensora.config import load
from opensora.errors import DataError
from opensora.interfaces import Autoencoder
from opensora.registry import DATASETS, VAES, build
from opensora.schema import TrainRun
from opensora.training import reconstruction_check
from opensora.training.clip_plan import ClipPlan, make_clip_plan
from opensora.training.reconstruction_check import Reconstruction, advice, log_reconstruction, measure, tuning_command
from tests.support.command import ROOT, TRAIN

CLIPS = "dataset.clips=6"


class Halving(Autoencoder):
    """Codes frames by halving their values: of a clip v the error is v / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.shapes: list[tuple[int, ...]] = []

    def holds_frames(self, num_frames: int) -> bool:
        return num_frames % 4 == 1

    def encode(self, x_BCTHW: torch.Tensor, rngs: Any = None) -> torch.Tensor:
        assert rngs is None
        self.shapes.append(tuple(x_BCTHW.shape))
        return x_BCTHW * self.weight

    def decode(self, z: torch.Tensor, num_frames: int | None = None) -> torch.Tensor:
        return z[:, :, :num_frames]


def run_and_clips(*overrides: str) -> tuple[TrainRun, ClipPlan]:
    run = load(str(ROOT / TRAIN), [CLIPS, *overrides], TrainRun).run
    return run, make_clip_plan(run, build(DATASETS, run.dataset), "here.py")


def test_psnr_of_four_clips() -> None:
    """Against the definition: 10 log10(4 / mean squared error) of each clip, and the same clips at every call."""
    _, clips = run_and_clips()
    vae = Halving()
    result = measure(vae, clips, seed=3)
    assert result is not None
    assert vae.shapes == [(1, 3, 5, 16, 16)] * 4
    assert result == measure(Halving(), clips, seed=3)
    squares = [10 ** (-value / 10) * 4 for value in result.psnr]
    batches = reconstruction_check.single_clip_batches(
        clips, seed=reconstruction_check.key_seed(3, "reconstruction check"), micro_batches=4
    )
    expected = [(batch.video_BCTHW / 2).double().square().mean().item() for batch in batches]
    assert squares == pytest.approx(expected, rel=1e-4)
    assert result.line() == (
        f"autoencoder: Halving restores 4 clips of {clips.report.where} at {result.mean:.1f} dB PSNR "
        f"({min(result.psnr):.1f} to {max(result.psnr):.1f})"
    )


def test_large_clips_are_cropped_to_what_the_autoencoder_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction_check, "LARGEST", (4, 8, 12))
    vae = Halving()
    assert measure(vae, run_and_clips()[1], seed=0, count=1) is not None
    assert vae.shapes == [(1, 3, 1, 8, 12)]


def test_no_random_state_changes() -> None:
    _, clips = run_and_clips()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    measure(Halving(), clips, seed=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


def test_warning_below_22_decibels_with_the_command_to_tune() -> None:
    run, clips = run_and_clips(
        "vae={'_delete_': True, 'type': 'CausalVAEModel', 'from_pretrained': 'assets/vae-small'}"
    )
    assert advice(Reconstruction("V", "here", [21.0, 23.5]), run, clips) is None
    warning = advice(Reconstruction("V", "here", [21.0, 22.5]), run, clips)
    assert warning is not None
    assert (
        "restores these clips at 21.8 dB PSNR, under 22: generated videos will be blurred or miss their colors"
        in warning
    )
    assert tuning_command(run, clips) in warning
    assert warning.endswith("then train with vae.from_pretrained=outputs/my-vae")


def test_tuning_command_is_a_run_on_the_same_clips() -> None:
    """The shell's words load as a training run of the autoencoder."""
    run, clips = run_and_clips(
        "vae={'_delete_': True, 'type': 'CausalVAEModel', 'from_pretrained': 'assets/vae-small'}"
    )
    run.dataset["data_path"] = "my clips.csv"
    words = shlex.split(tuning_command(run, clips))
    assert words[:3] == ["opensora", "train", "configs/vae/train/demo.py"]
    tuning = load(str(ROOT / words[2]), words[3:], TrainRun).run
    assert tuning.task == "autoencoder"
    assert tuning.vae == {"type": "CausalVAEModel", "from_pretrained": "assets/vae-small"}
    for dataset in (tuning.dataset, tuning.validation_dataset):
        assert dataset is not None
        assert (dataset["data_path"], tuple(dataset["image_size"])) == ("my clips.csv", (16, 16))
    assert (tuning.dataset["num_frames"], tuning.run_dir, tuning.steps) == (5, "outputs/my-vae", 2000)
    other = {"type": "VideoAutoencoderKL", "config": {"block_out_channels": [8, 16]}, "latent_scale": [1.0]}
    run.vae.clear()
    run.vae.update(other)
    words = shlex.split(tuning_command(run, clips))
    assert load(str(ROOT / words[2]), words[3:], TrainRun).run.vae == {k: other[k] for k in ("type", "config")}


def test_log_and_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    run, clips = run_and_clips()
    logged: list[tuple[str, str]] = []
    monkeypatch.setattr(reconstruction_check, "logger", lambda: _Log(logged))
    vae = build(VAES, run.vae)
    log_reconstruction(run, vae, clips)
    assert [level for level, _ in logged] == ["info", "warning"]
    assert "autoencoder: CausalVAEModel restores 4 clips of" in logged[0][1]
    assert "under 22" in logged[1][1]
    logged.clear()
    monkeypatch.setattr(reconstruction_check, "psnr", lambda a, b: torch.tensor([30.0]))
    log_reconstruction(run, vae, clips)
    assert [level for level, _ in logged] == ["info"]


def test_clips_that_cannot_be_read_or_coded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither ends the run: training says what is wrong with its rows."""
    run, clips = run_and_clips()
    logged: list[tuple[str, str]] = []
    monkeypatch.setattr(reconstruction_check, "logger", lambda: _Log(logged))
    vae = Halving()
    monkeypatch.setattr(vae, "encode", _raise(torch.OutOfMemoryError("full")))
    log_reconstruction(run, vae, clips)
    assert [level for level, _ in logged] == ["warning"]
    assert "more memory than the device has left" in logged[0][1]
    monkeypatch.setattr(reconstruction_check, "single_clip_batches", _raise(DataError("no row")))
    log_reconstruction(run, Halving(), clips)
    assert len(logged) == 1


class _Log:
    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.info = lambda line: lines.append(("info", line))
        self.warning = lambda line: lines.append(("warning", line))


def _raise(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail
