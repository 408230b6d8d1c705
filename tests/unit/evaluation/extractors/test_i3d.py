"""FVD's network is called as StyleGAN-V's file is, on clips prepared for it; any other file is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opensora.errors import DataError, WeightsError
from opensora.evaluation import metric
from opensora.evaluation.extractors.i3d import I3D
from opensora.evaluation.frechet_distance import clip_for_features
from opensora.evaluation.metric import whole_clip
from tests.support.evaluated_videos import evaluated, noise

CPU = torch.device("cpu")


class StandIn(nn.Module):
    """Answers with the means of places of its clip, 400 of them; with the call of the file."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        if rescale or resize or not return_features:
            return x.new_zeros(1, 1)
        return nn.functional.adaptive_avg_pool3d(x.mean(1, keepdim=True), [4, 10, 10]).flatten(1)


class Frames(nn.Module):
    """Takes the clip alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Short(nn.Module):
    """Another number of features."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return x.mean((2, 3, 4))


def scripted(path: Path, module: nn.Module) -> str:
    torch.jit.script(module).save(str(path))
    return str(path)


def test_features_are_of_the_first_frames_as_the_network_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric, "BLOCK_PIXELS", 4 * 48 * 64)  # the clip comes in blocks
    frames = noise(0, frames=10)
    video = evaluated(tmp_path / "a", frames)
    extractor = I3D(scripted(tmp_path / "i3d.pt", StandIn()), num_frames=9).load(CPU)
    features = extractor.features(video)
    pixels = torch.stack([torch.from_numpy(frame) for frame in frames[:9]]).permute(3, 0, 1, 2)[None]
    clip = clip_for_features(pixels.double() / 255)  # no level is lost on the way
    expected = StandIn()(clip.float(), rescale=False, resize=False, return_features=True)
    torch.testing.assert_close(features, expected)
    assert features.shape == (1, 400)
    assert extractor.figure == "fvd"
    assert whole_clip(video).shape[1] == 10


def test_short_videos_are_a_sentence(tmp_path: Path) -> None:
    extractor = I3D(scripted(tmp_path / "i3d.pt", StandIn())).load(CPU)
    with pytest.raises(DataError, match=r"a\.mkv: has 3 frames; FVD was to be measured on 16"):
        extractor.features(evaluated(tmp_path / "a", noise(0, frames=3)))
    with pytest.raises(ValueError, match="at least 9"):
        I3D("i3d.pt", num_frames=8)


@pytest.mark.parametrize(
    ("module", "finding"), [(Short(), r"its answer is \[1, 3\] instead of \[1, 400\]"), (Frames(), "5 argument")]
)
def test_another_network_is_not_called_fvd(module: nn.Module, finding: str, tmp_path: Path) -> None:
    extractor = I3D(scripted(tmp_path / "other.pt", module), num_frames=9).load(CPU)
    with pytest.raises(WeightsError, match=rf"other\.pt: is not the network of FVD \(.*{finding}"):
        extractor.features(evaluated(tmp_path / "a", noise(0, frames=9, height=24, width=24)))


def test_files_that_are_no_torchscript(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"broken")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "state.pt")
    for name in ("broken.pt", "state.pt"):
        with pytest.raises(WeightsError, match=rf"I3D: .*{name}: cannot be read as TorchScript"):
            I3D(str(tmp_path / name)).load(CPU)
    with pytest.raises(WeightsError, match=r"none\.pt: no such file"):
        I3D(str(tmp_path / "none.pt")).load(CPU)
