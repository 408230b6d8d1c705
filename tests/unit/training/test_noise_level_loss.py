"""The loss per noise level of a run, from its folder alone."""

import math
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.cli.evaluate import main
from opensora.errors import ConfigError
from opensora.evaluation.metric import Measurement
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.training.diffusion_task import DiffusionTask
from opensora.training.noise_level_loss import LossPerNoiseLevel, _measurement, added
from opensora.training.step_stats import BINS, bin_name
from tests.support.short_runs import DEBUG, ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, warm: str) -> Path:
    """A run of one step on clips of one size, whose model still predicts zero."""
    folder = tmp_path_factory.mktemp("levels") / "run"
    command = [warm, "-m", "opensora.cli.main", "train", DEBUG, f"run_dir={folder}"]
    subprocess.run([*command, "steps=1", "optimizer.lr=1e-12", "dataset.clips=8"], check=True, capture_output=True)
    return folder


def measure(run: Path, **keys: Any) -> Measurement:
    return LossPerNoiseLevel(load=str(run), **{"clips": 4, **keys}).measure([], [], CPU)


def test_every_tenth_is_measured_on_every_clip_once(run: Path) -> None:
    measured = measure(run)
    (curve,) = measured.curves
    ((name, values),) = curve.lines.items()
    assert curve.x == pytest.approx([0.05 + 0.1 * place for place in range(10)])
    assert len(values) == 10
    assert all(0 < value < 5 for value in values)
    (figure,) = measured.figures
    assert figure.value == pytest.approx(sum(values) / 10)
    assert figure.note == "mean over noise levels and 4 clips: clips that the run trained on"
    assert name.count("x") == 2
    assert measure(run).curves[0].lines == curve.lines  # the same draws
    assert measure(run, seed=1).curves[0].lines != curve.lines
    assert "and 8 clips" in measure(run, clips=50).figures[0].note  # the data set has no more


def test_a_checkpoint_and_own_clips_may_be_named(run: Path) -> None:
    (step,) = (run / "checkpoints").glob("step-*")
    assert measure(step).figures == measure(run).figures
    held_out = {"type": "MovingShapes", "clips": 8, "num_frames": 5, "image_size": [16, 16], "split": "holdout"}
    config = measure(run).curves[0].lines
    (name,) = config
    held_out |= {"num_frames": int(name.split("x")[0]), "image_size": [int(side) for side in name.split("x")[1:]]}
    own = measure(run, dataset=held_out)
    assert own.figures[0].note.endswith("4 clips: the clips of dataset")
    assert own.figures[0].value != measure(run).figures[0].value


def test_a_perfect_model_has_no_loss(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rectified flow: the answer x0 - noise. One that says zero is wrong by its square, whose mean is 1 + E x0^2."""
    targets: list[torch.Tensor] = []
    target = RectifiedFlow.target

    def keep(self: RectifiedFlow, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        targets.append(target(self, x0, noise))
        return targets[-1]

    monkeypatch.setattr(RectifiedFlow, "target", keep)
    loss = DiffusionTask._loss
    factor = 1.0

    def answered(self: DiffusionTask, model: Any, batch: Any, latents: Any, draws: Any, drop: Any, **more: Any) -> Any:
        flow = RectifiedFlow()

        def answer(x: torch.Tensor, t: torch.Tensor, **_: Any) -> torch.Tensor:
            # x = (1 - tau) x0 + tau noise, so the velocity is (x0 - x) / tau
            tau = (t / flow.num_timesteps).view(-1, 1, 1, 1, 1)
            return factor * (latents - x) / tau.clamp(min=1e-6)

        return loss(replace(self, scheduler=flow), answer, batch, latents, draws, drop, **more)

    monkeypatch.setattr(DiffusionTask, "_loss", answered)
    (values,) = measure(run).curves[0].lines.values()
    assert max(values) < 1e-6
    factor = 0.0
    (values,) = measure(run).curves[0].lines.values()
    expected = torch.stack([each.square().mean() for each in targets[len(targets) // 2 :]]).view(-1, BINS).mean(0)
    assert list(values) == pytest.approx(expected.tolist(), rel=1e-5)


def test_sizes_have_lines_of_their_own() -> None:
    def totals(value: float) -> dict[str, tuple[float, int]]:
        return {"loss": (10 * value, 10), **{f"loss_bin/{bin_name(index)}": (value, 1) for index in range(BINS)}}

    measured = _measurement({(1, 8, 8): totals(1.0), (5, 8, 8): added([totals(2.0), totals(4.0)])}, "clips")
    assert {figure.name: figure.value for figure in measured.figures} == {
        "loss": pytest.approx(7 / 3),
        "loss 1x8x8": 1.0,
        "loss 5x8x8": 3.0,
    }
    assert measured.curves[0].lines == {"1x8x8": (1.0,) * 10, "5x8x8": (3.0,) * 10}
    assert not math.isnan(measured.figures[0].value)


def test_a_report_without_videos(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "levels.py"
    config.write_text(f"metrics = dict(levels=dict(type='LossPerNoiseLevel', load={str(run)!r}, clips=2))")
    assert main([str(config), f"report_dir={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.startswith("loss ")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1


def test_mistakes_are_sentences(run: Path, tmp_path: Path) -> None:
    (weights,) = run.glob("checkpoints/*/weights/model")
    loose = tmp_path / "weights"
    loose.symlink_to(weights)
    for keys, sentence in (
        ({"load": str(loose)}, "weights outside a run folder"),
        ({"load": str(run), "clips": 0}, "allowed: 1 or more"),
        ({"load": str(run), "dataset": {"type": "MovingShape"}}, "key 'dataset.type': found 'MovingShape'"),
        ({"load": str(ROOT / "assets/vae-small")}, "autoencoder"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            LossPerNoiseLevel(**keys).measure([], [], CPU)
