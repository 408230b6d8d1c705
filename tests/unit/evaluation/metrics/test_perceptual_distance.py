"""LPIPS and ST-LPIPS of files are those of their frames, and are named for the network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.errors import ConfigError, DataError, WeightsError
from opensora.evaluation.metrics.perceptual_distance import PerceptualDistance
from opensora.models.vae.perceptual import LPIPS
from opensora.models.vae.st_lpips import STLPIPS
from tests.support.evaluated_videos import evaluated, noise
from tests.unit.models.vae.test_st_lpips import random_state

CPU = torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "name"), [(lambda path: STLPIPS(path, "alex"), "st_lpips"), (lambda path: LPIPS(path, "alex"), "lpips")]
)
def test_the_distance_is_the_network_s_over_all_frames(kind: type, name: str, tmp_path: Path) -> None:
    weights = str(tmp_path / "alex.pth")
    torch.save(random_state(kind(weights)), weights)
    a, b = noise(0, frames=3), noise(1, frames=3)
    pair = [evaluated(tmp_path / "a", a)], [evaluated(tmp_path / "b", b)]
    distance = {"type": type(kind(weights)).__name__, "weights": weights, "net": "alex"}
    [figure] = PerceptualDistance(distance).measure(*pair, CPU).figures
    x, y = (torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1 for frames in (a, b))
    assert figure.value == pytest.approx(kind(weights).load()(x, y).mean().item(), rel=1e-4)
    assert (figure.name, figure.better) == (name, "lower")
    assert "net alex" in figure.note
    equal = PerceptualDistance(distance).measure(pair[0], pair[0], CPU)
    assert equal.figures[0].value == 0
    small = evaluated(tmp_path / "s", noise(0, height=16))
    with pytest.raises(DataError, match=r"s\.mkv: (ST)?LPIPS: frames of \[16, 64\]; at least"):
        PerceptualDistance(distance).measure([small], [small], CPU)


def test_a_distance_that_is_none_is_a_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"metric PerceptualDistance: key 'distance.type': found 'DISTS'.*LPIPS, STLPIPS"
    ):
        PerceptualDistance({"type": "DISTS"})
    with pytest.raises(ConfigError, match=r"'distance.weights': missing; LPIPS needs it"):
        PerceptualDistance({"type": "LPIPS"})
    with pytest.raises(ConfigError, match=r"net.*'squeeze'"):
        PerceptualDistance({"type": "STLPIPS", "weights": "none", "net": "squeeze"})
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        PerceptualDistance({"type": "STLPIPS", "weights": "none.pth"}).measure([], [], CPU)
