"""The Fréchet distance over a network's features, with its name and a warning about few samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError, DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.frechet_distance import frechet_distance
from opensora.evaluation.metrics.frechet import FrechetDistance
from opensora.registry import EXTRACTORS
from tests.support.evaluated_videos import evaluated, noise

CPU = torch.device("cpu")


class MeanColor:
    """The mean red and green of each frame."""

    figure, note = "frechet_color", "mean color"

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def load(self, device: torch.device) -> "MeanColor":
        return self

    def features(self, video: EvaluatedVideo) -> Tensor:
        means = torch.from_numpy(video.whole()).float().mean((1, 2))[:, :2]
        return means * float("nan") if self.broken else means


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setitem(EXTRACTORS.module_dict, "MeanColor", MeanColor)
    return {"type": "MeanColor"}


def test_the_distance_of_the_features_of_all_videos(extractor: dict[str, Any], tmp_path: Path) -> None:
    made = [evaluated(tmp_path / f"a{n}", noise(n, frames=2)) for n in range(2)]
    real = [evaluated(tmp_path / f"b{n}", [frame // 2 for frame in noise(n, frames=3)]) for n in range(2)]
    [figure] = FrechetDistance(extractor).measure(made, real, CPU).figures
    features = [torch.cat([MeanColor().features(video) for video in each]) for each in (made, real)]
    assert figure.value == pytest.approx(frechet_distance(*features))
    assert figure.value > 100
    assert (figure.name, figure.better) == ("frechet_color", "lower")
    assert figure.note == "mean color; 4 against 6 samples"
    [equal] = FrechetDistance(extractor).measure(made, made, CPU).figures
    assert equal.value == pytest.approx(0, abs=1e-6)
    [few] = FrechetDistance(extractor).measure(made[:1], real, CPU).figures
    assert "2 against 6 samples; too few for 2 features: the distance is biased upward" in few.note


def test_what_leaves_no_distance_is_a_sentence(extractor: dict[str, Any], tmp_path: Path) -> None:
    single = evaluated(tmp_path / "a", noise(0, frames=1))
    pair = evaluated(tmp_path / "b", noise(1, frames=2))
    with pytest.raises(DataError, match=r"metric FrechetDistance: .*at least two samples"):
        FrechetDistance(extractor).measure([single], [pair], CPU)
    with pytest.raises(DataError, match=r"metric FrechetDistance: .*2 of 2 samples of the first set hold NaN"):
        FrechetDistance({**extractor, "broken": True}).measure([pair], [pair], CPU)


def test_an_extractor_that_is_none_is_a_sentence() -> None:
    with pytest.raises(
        ConfigError, match=r"metric FrechetDistance: key 'extractor.type': found 'FVD'.*CLIPFrames, I3D"
    ):
        FrechetDistance({"type": "FVD"})
    with pytest.raises(ConfigError, match=r"key 'extractor.path': missing; I3D needs it"):
        FrechetDistance({"type": "I3D"})
    with pytest.raises(ConfigError, match="I3D takes at least 9 frames"):
        FrechetDistance({"type": "I3D", "path": "i3d.pt", "num_frames": 8})
