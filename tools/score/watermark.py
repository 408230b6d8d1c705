"""Watermarks: edges that every frame has at one place while the picture behind and around them moves.

The median over frames of an edge's gradient is that of a mark, for the picture behind it changes: Dekel, Rubinstein, Liu &
Freeman 2017, "On the Effectiveness of Visible Watermarks". In a clip that does not move nothing can be said.

Shapes: T frames, H W rows and columns; boxes are (left, top, right, bottom) in pixels, the ends exclusive.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]

_STRENGTH = 6.0  # gray levels for each pixel: weaker edges are noise
_STEADY = 0.6  # share of an edge's median strength that it must have in most frames
_MOST_FRAMES = 0.8
_MOVING = 0.44  # the gradients' median by their mean, in the picture and around a mark: more is a picture at rest
_PLAIN = 2.5  # mean gradient around a mark below which there are no edges to move, in gray levels for each pixel
_CHANGE = 5.0  # gray levels of standard deviation over the frames: plain surroundings must change that much
_SMALLEST, _LARGEST = 0.001, 0.05  # share of the frame that the box of a mark has
_DENSITY = 0.06  # share of a box that its steady edges must cover
_DIRECTIONS = 0.3  # of the weaker direction of edges by the stronger: lines along a pan are steady as well
_RING = 0.04  # of the shorter side: the width of the surroundings of a mark


@dataclass(frozen=True)
class Gradients:
    """Gradients of gray frames, in gray levels for each pixel, [H, W] each."""

    across: NDArray[np.float32]  # median over the frames
    down: NDArray[np.float32]
    mean: NDArray[np.float32]  # mean strength over the frames
    steady: NDArray[np.bool_]  # on an edge that most frames have

    @property
    def median(self) -> NDArray[np.float32]:
        """Strength of the median."""
        return np.hypot(self.across, self.down)


def gradients(gray: NDArray[np.uint8]) -> Gradients:
    """Of frames [T, H, W]."""
    import cv2

    smooth = [cv2.GaussianBlur(frame, (3, 3), 0) for frame in gray]
    across, down = (np.stack([cv2.Sobel(each, cv2.CV_32F, *way) / 8 for each in smooth]) for way in ((1, 0), (0, 1)))
    middle_across, middle_down = np.median(across, axis=0), np.median(down, axis=0)
    strength = np.hypot(middle_across, middle_down)
    along = (across * middle_across + down * middle_down) / np.maximum(strength, 1e-3)
    weakest = np.quantile(along, 1 - _MOST_FRAMES, axis=0)
    steady = (strength > _STRENGTH) & (weakest > _STEADY * strength)
    return Gradients(middle_across, middle_down, np.hypot(across, down).mean(axis=0), steady)


def marks(gray: NDArray[np.uint8], texts: Sequence[Box] = ()) -> list[Box]:
    """Boxes of the marks in gray frames [T, H, W], none where the picture does not move.

    texts: boxes of text that is at one place in all frames; each is a mark where the picture around it moves.
    """
    if len(gray) < 4:
        return []
    edges = gradients(gray)
    if edges.median.sum() >= _MOVING * edges.mean.sum():
        return []
    changes = gray.std(axis=0, dtype=np.float32)
    logos = [box for box in _components(edges.steady) if _is_drawing(edges, box)]
    return [box for box in [*texts, *logos] if _moves_around(edges, changes, box)]


def covered(boxes: Sequence[Box], height: int, width: int) -> float:
    """Share of the frame under the boxes."""
    mask = np.zeros((height, width), bool)
    for left, top, right, bottom in boxes:
        mask[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    return float(mask.mean())


def _components(steady: NDArray[np.bool_]) -> list[Box]:
    """Boxes of edges that are near each other: letters of a word, parts of a logo."""
    import cv2

    height, width = steady.shape
    reach = max(3, round(min(height, width) * _RING) // 2 * 2 + 1)
    joined = cv2.morphologyEx(steady.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(joined)
    boxes = [(left, top, left + columns, top + rows) for left, top, columns, rows, _ in stats[1:].tolist()]
    return [box for box in boxes if _SMALLEST <= _area(box) / steady.size <= _LARGEST]


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _is_drawing(edges: Gradients, box: Box) -> bool:
    """True for dense steady edges of several directions."""
    left, top, right, bottom = box
    inside = slice(top, bottom), slice(left, right)
    steady = edges.steady[inside]
    sums = sorted(float(np.abs(part[inside])[steady].sum()) for part in (edges.across, edges.down))
    return bool(steady.mean() >= _DENSITY) and sums[0] >= _DIRECTIONS * sums[1]


def _moves_around(edges: Gradients, changes: NDArray[np.float32], box: Box) -> bool:
    """True if the edges around a box come and go; where there are none, if the pixels change."""
    height, width = changes.shape
    ring = max(4, round(min(height, width) * _RING))
    left, top, right, bottom = box
    around = np.zeros((height, width), bool)
    around[max(0, top - ring) : max(0, bottom + ring), max(0, left - ring) : max(0, right + ring)] = True
    around[max(0, top - 2) : max(0, bottom + 2), max(0, left - 2) : max(0, right + 2)] = False  # blur of the mark
    if not around.any():
        return False
    if edges.mean[around].mean() < _PLAIN:
        return bool((changes[around] > _CHANGE).mean() >= 0.5)
    return bool(edges.median[around].sum() < _MOVING * edges.mean[around].sum())
