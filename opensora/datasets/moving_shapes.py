"""MovingShapes: drawn clips of one colored shape moving one way, with the caption that says so.

Some combinations of color, shape and direction never appear in training although each color, shape and direction
does. A model that draws a held-out combination on request has learnt the words, not the clips.
`evaluation/shape_adherence.py` reads the three back from pixels.

Layout: C colors (red, green, blue), T frames, H W rows and columns. Lengths are in pixels.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from opensora.datasets.drawn_clips import DrawnClips, uniform
from opensora.registry import DATASETS
from opensora.rng import Draw

Array = np.ndarray

COLORS: dict[str, tuple[float, float, float]] = {  # red, green, blue in [0, 1], on a black background
    "red": (0.95, 0.10, 0.10),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.15, 0.30, 1.00),
    "yellow": (1.00, 0.90, 0.10),
    "purple": (0.65, 0.15, 0.85),
    "white": (1.00, 1.00, 1.00),
}
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1.0


def _square(x: Array, y: Array) -> Array:
    return np.maximum(abs(x), abs(y)) - 0.886  # half a side


def _triangle(x: Array, y: Array) -> Array:
    # Equilateral, point up, centroid at the origin; 0.777 is the radius of the circle inside it.
    return np.maximum(y, abs(x) * 0.866 - y * 0.5) - 0.777


def _cross(x: Array, y: Array) -> Array:
    long, short = 1.2, 0.391  # half the length and half the width of an arm
    upright = np.maximum(abs(x) - short, abs(y) - long)
    return np.minimum(upright, np.maximum(abs(y) - short, abs(x) - long))


# Signed distance to the outline, negative inside. Every shape has the area of the unit circle, so that size gives
# no hint of shape, and its centroid at the origin.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
_REACH = 1.56  # farthest any outline gets from the centroid (a corner of the triangle), in radii

RADII = (0.18, 0.22)  # least and largest, of the shorter side
WAYS = (0.2, 0.28)  # covered in a whole clip, of the shorter side
UNCLEAR = "unclear"
TEMPLATES = ("a {color} {shape} moves {direction}", "a {color} {shape} moving {direction}")


@dataclass(frozen=True)
class Attributes:
    """Attributes of a clip; `UNCLEAR` where the pixels do not show one."""

    color: str
    shape: str
    direction: str

    def caption(self, template: str = TEMPLATES[0]) -> str:
        return template.format(color=self.color, shape=self.shape, direction=self.direction)


# Never drawn for training: 16 of 96, four of each shape and direction, two or three of each color.
HOLDOUT = tuple(
    Attributes(*words.split())
    for words in (
        "red circle left",
        "red triangle up",
        "red cross right",
        "green square right",
        "green circle down",
        "green cross up",
        "blue triangle left",
        "blue square down",
        "blue circle right",
        "yellow cross left",
        "yellow square up",
        "yellow triangle down",
        "purple circle up",
        "purple triangle right",
        "white square left",
        "white cross down",
    )
)


def combinations(split: Literal["train", "holdout"]) -> list[Attributes]:
    """The combinations of one split, in a fixed order."""
    if split == "holdout":
        return list(HOLDOUT)
    return [c for c in itertools.starmap(Attributes, itertools.product(COLORS, SHAPES, DIRECTIONS)) if c not in HOLDOUT]


def coverage(shape: str, size_HW: tuple[int, int], x_T: Array, y_T: Array, radius: Array | float) -> Array:
    """Share of each pixel inside the shape, [T, H, W] in [0, 1]; centres in pixels, pixel (0, 0) spans [0, 1)."""
    radius_T = np.broadcast_to(np.asarray(radius, dtype=np.float64), x_T.shape)[:, None, None]
    columns = (np.arange(size_HW[1]) + 0.5)[None, None, :] - x_T[:, None, None]
    rows = (np.arange(size_HW[0]) + 0.5)[None, :, None] - y_T[:, None, None]
    columns, rows = np.broadcast_arrays(columns, rows)
    distance = SHAPES[shape](columns / radius_T, rows / radius_T) * radius_T
    return np.clip(0.5 - distance, 0.0, 1.0)


@DATASETS.register_module()
class MovingShapes(DrawnClips):
    """Clips drawn on the fly: the row says which combination, the draw says size, place, speed and wording.

    clips: rows of one epoch; combinations take turns. image_size: (height, width) in pixels. fps: frames per second
    that the clips claim; the way covered in a whole clip does not depend on it.
    """

    where = "MovingShapes"
    random_properties = ("size", "place", "speed", "wording")

    def __init__(
        self,
        clips: int = 4096,
        num_frames: int = 9,
        image_size: Sequence[int] = (32, 32),
        split: Literal["train", "holdout"] = "train",
        fps: float = 8.0,
    ) -> None:
        super().__init__(clips, num_frames, image_size, fps)
        self.combinations = combinations(split)

    def attributes(self, row: int) -> Attributes:
        """Attributes of this row's clip."""
        return self.combinations[row % len(self.combinations)]

    def video(self, row: int, draw: Draw) -> Tensor:
        """Frames in which the shape stays inside the picture and covers 0.2 to 0.28 of the shorter side."""
        what = self.attributes(row)
        height, width = self.image_size
        short = min(height, width)
        radius = short * uniform(draw.rng("size"), *RADII)
        way = short * uniform(draw.rng("speed"), *WAYS)
        step_x, step_y = DIRECTIONS[what.direction]
        start = draw.rng("start")
        edge = radius * _REACH + 0.5  # the antialiased rim
        margin_x = min(edge + way / 2 * abs(step_x), width / 2)
        margin_y = min(edge + way / 2 * abs(step_y), height / 2)
        middle_x = uniform(start, margin_x, width - margin_x)
        middle_y = uniform(start, margin_y, height - margin_y)
        along_T = np.linspace(-way / 2, way / 2, self.num_frames)
        inside_THW = coverage(
            what.shape, self.image_size, middle_x + step_x * along_T, middle_y + step_y * along_T, radius
        )
        video = np.array(COLORS[what.color])[:, None, None, None] * inside_THW[None] * 2 - 1
        return torch.from_numpy(video.astype(np.float32))

    def captions(self, row: int) -> list[str]:
        """Every wording that `caption` can choose."""
        return [self.attributes(row).caption(template) for template in TEMPLATES]

    def settings(self) -> dict[str, Any]:
        """Settings that make a clip of any size from any row; see datasets/feature_store.py."""
        return {"type": "MovingShapes", "fps": self.fps}
