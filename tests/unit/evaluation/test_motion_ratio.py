import numpy as np
import pytest
import torch
from torch import Tensor

from opensora.evaluation.motion_ratio import mean_flow, motion_ratio, moves_alike


def panned(step: float, frames: int = 5, height: int = 64, width: int = 96) -> Tensor:
    """A window over a soft random texture that goes `step` pixels to the right for each frame, [3, T, H, W] in [-1, 1]."""
    import cv2

    picture = np.random.default_rng(0).uniform(0, 255, (height + 16, width + 48)).astype(np.float32)
    picture = cv2.GaussianBlur(picture, (0, 0), 2)
    picture = 30 + 190 * (picture - picture.min()) / (picture.max() - picture.min())
    windows = [
        cv2.warpAffine(picture, np.float32([[1, 0, -8 - step * n], [0, 1, -8]]), (width, height), flags=cv2.INTER_CUBIC)
        for n in range(frames)
    ]
    return torch.from_numpy(np.stack(windows)).expand(3, -1, -1, -1) / 127.5 - 1


@pytest.mark.parametrize("step", [0.5, 1.0, 3.0])
def test_flow_of_a_pan_is_its_speed_in_pixels_of_the_clip(step: float) -> None:
    assert mean_flow(panned(step)) == pytest.approx(step, rel=0.05)
    assert mean_flow(panned(step, height=40, width=48)) == pytest.approx(step, rel=0.08)


def test_a_still_clip_does_not_flow() -> None:
    assert mean_flow(panned(0)) == 0
    with pytest.raises(ValueError, match="1 frame; at least two"):
        mean_flow(panned(1, frames=1))


def test_ratio_has_a_range_and_none_for_a_shot_at_rest() -> None:
    assert motion_ratio(1.0, 4.0) == 0.25
    assert motion_ratio(1.0, 0.0) is None
    assert [moves_alike(ratio) for ratio in (None, 0.49, 0.5, 2.0, 2.01)] == [False, False, True, True, False]
