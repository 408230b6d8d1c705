"""Marks that stay while the picture moves."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tools.score.watermark import Box, covered, marks

pytest.importorskip("cv2", reason="OpenCV is not installed; run pip install -e '.[tools]'")

FRAMES, HEIGHT, WIDTH = 10, 120, 160


def scenery() -> NDArray[np.uint8]:
    """Gray [240, 400] with soft shapes of many sizes."""
    import cv2

    rng = np.random.default_rng(0)
    layers = [cv2.resize(rng.normal(size=(240 // cell, 400 // cell)), (400, 240)) * cell for cell in (4, 8, 20)]
    every = sum(layers)
    return np.clip(110 + 40 * every / np.std(every), 0, 255).astype(np.uint8)


def clip(speed: int, marked: bool) -> NDArray[np.uint8]:
    """A pan of `speed` pixels for each frame, with a drawing at rows 8 to 28 and columns 130 to 150 or without."""
    import cv2

    frames = [scenery()[60 : 60 + HEIGHT, speed * t : speed * t + WIDTH].copy() for t in range(FRAMES)]
    for frame in frames if marked else ():
        cv2.circle(frame, (140, 18), 9, 255, 2)
        cv2.line(frame, (134, 18), (146, 18), 255, 2)
    return np.stack(frames)


def overlap(box: Box, other: Box) -> float:
    sides = [max(0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1)]
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def test_a_drawing_that_stays_is_a_mark() -> None:
    [box] = marks(clip(20, marked=True))
    assert overlap(box, (130, 8, 151, 29)) > 0.7


@pytest.mark.parametrize(("speed", "marked"), [(20, False), (0, True), (0, False)])
def test_a_moving_picture_alone_and_a_picture_at_rest_have_none(speed: int, marked: bool) -> None:
    assert marks(clip(speed, marked)) == []


def test_steady_text_is_a_mark_where_the_picture_moves() -> None:
    text = (40, 90, 100, 104)
    assert marks(clip(20, marked=False), [text]) == [text]
    assert marks(clip(0, marked=False), [text]) == []
    assert marks(clip(20, marked=False)[:3], [text]) == []  # too few frames to say


def test_boxes_cover_their_union() -> None:
    assert covered([(0, 0, 5, 10), (0, 0, 5, 10), (-5, -5, 10, 5)], 10, 10) == pytest.approx(0.75)
    assert covered([], 10, 10) == 0
