import math

import numpy as np
import pytest
import torch

from opensora.datasets.moving_objects import draw_background
from opensora.datasets.object_drawings import object_drawings
from opensora.evaluation.drawing_matcher import drawing_matcher, find_blobs

SIZE = (72, 80)


def differences(name: str, x: list[float], y: list[float], reach: list[float], angle: list[float]) -> torch.Tensor:
    drawings = object_drawings()
    drawing_4THW = drawings.draw(drawings.names.index(name), SIZE, x, y, reach, angle)
    return drawing_4THW[:3] - drawing_4THW[3:] * draw_background("sea", SIZE)[:, None]


def test_place_size_and_turn_are_found() -> None:
    x, y, reach = [24, 30, 36, 42.0], [40, 38, 36, 34.0], [16, 18, 20, 22.0]
    for name, degrees in (("giraffe", 100), ("axe", -60), ("turtle", 0)):
        angle = np.linspace(0.2, 0.2 + math.radians(degrees), 4).tolist()
        blobs = find_blobs(differences(name, x, y, reach, angle))
        assert blobs is not None
        match = drawing_matcher("sea").match(blobs)
        assert object_drawings().names[match.number] == name
        assert match.error < 0.1
        assert match.x_T == pytest.approx(x, abs=0.7)
        assert match.y_T == pytest.approx(y, abs=0.7)
        assert match.reach_T == pytest.approx(reach, rel=0.06)
        assert math.degrees(match.turn) == pytest.approx(degrees, abs=12)


def test_a_frame_without_an_object_or_full_of_it_has_no_blob() -> None:
    assert find_blobs(torch.zeros(3, 2, *SIZE)) is None
    assert find_blobs(torch.ones(3, 2, *SIZE)) is None
    present = differences("crab", [40.0], [36.0], [20.0], [0.0])
    assert find_blobs(present) is not None
    assert find_blobs(torch.cat([present, torch.zeros_like(present)], dim=1)) is None


def test_a_blob_has_the_middle_and_the_spread_of_what_it_covers() -> None:
    square = torch.zeros(3, 1, *SIZE)
    square[:, :, 20:32, 30:42] = 0.5
    blobs = find_blobs(square)
    assert blobs is not None
    assert (blobs.x_T.item(), blobs.y_T.item()) == pytest.approx((36, 26), abs=1e-3)
    assert blobs.spread_T.item() == pytest.approx(math.sqrt(2 * 13**2 / 12), rel=0.04)  # smoothing adds half a pixel
    assert blobs.patches_TD.shape == (1, 3 * 16 * 16)
