"""The offline substitute: features of frames and of their change, at one size for all videos."""

from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.evaluation import metric
from opensora.evaluation.extractors.trunk_features import TrunkFeatures
from opensora.models.vae.st_lpips import STLPIPS
from tests.support.evaluated_videos import evaluated, noise
from tests.unit.models.vae.test_st_lpips import random_state

CPU = torch.device("cpu")
SIZE = 24


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trunk") / "alex.pth"
    torch.save(random_state(STLPIPS("none")), path)
    return str(path)


@torch.no_grad()
def test_features_are_the_mean_and_the_mean_change_of_frames(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric, "BLOCK_PIXELS", 2 * SIZE * 32)
    frames = noise(0, frames=3, height=SIZE, width=32)
    trunk = TrunkFeatures(weights, size=SIZE).load(CPU)
    features = trunk.features(evaluated(tmp_path / "a", frames))
    x = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    each_TC = STLPIPS(weights).load().features(x)[-1].mean((2, 3))
    expected = torch.cat([each_TC.mean(0), ((each_TC[1] - each_TC[0]).abs() + (each_TC[2] - each_TC[1]).abs()) / 2])
    torch.testing.assert_close(features, expected[None], rtol=1e-4, atol=1e-5)
    assert trunk.figure == "frechet_st_lpips_alex"
    assert "no FVD" in trunk.note
    still = trunk.features(evaluated(tmp_path / "b", frames[:1]))
    assert features.shape == still.shape == (1, 512)
    assert not still[0, 256:].any()
    assert features[0, 256:].any()


@torch.no_grad()
def test_the_size_of_a_video_hardly_counts(weights: str, tmp_path: Path) -> None:
    """Frames are scaled to one shorter side, also to the smallest that the trunk takes, from any size."""
    trunk = TrunkFeatures(weights, size=SIZE).load(CPU)
    small = noise(0, frames=1, height=SIZE, width=SIZE)
    large = [frame.repeat(3, 0).repeat(3, 1) for frame in small]
    a, b = (trunk.features(evaluated(tmp_path / name, each)) for name, each in (("a", small), ("b", large)))
    assert torch.nn.functional.cosine_similarity(a, b).item() > 0.9
    for height, width in ((65, 65), (47, 90), (12, 31)):
        assert trunk.features(evaluated(tmp_path / "c", noise(1, 1, height, width))).isfinite().all()
    with pytest.raises(ValueError, match="size is at least 24"):
        TrunkFeatures(weights, size=23)
