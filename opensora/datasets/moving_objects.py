"""MovingObjects: clips of one of 100 drawings that moves, turns or changes size over a background, with the caption.

Some pairs of object and motion never appear in training although each object and each motion does. A model that shows a
held-out pair on request has learnt the words, not the clips. `evaluation/object_adherence.py` reads object, motion,
background and speed back from pixels.

The first frame says nothing of what follows: place and size come from the same range for every motion and speed, and every
object starts upright. All lengths are shares of the shorter side of the picture.

Layout: T frames, H W rows and columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from opensora.datasets.drawn_clips import DrawnClips, uniform
from opensora.datasets.object_drawings import ObjectDrawings, object_drawings
from opensora.registry import DATASETS
from opensora.rng import Draw, permutation

Array = np.ndarray

SPEEDS = ("slowly", "quickly")
REACHES = (0.21, 0.27)  # at the start, from the pivot of the drawing to its farthest point
WAYS = ((0.08, 0.1), (0.17, 0.2))  # of the four directions in a whole clip, for each speed
ZOOMS = ((1.2, 1.28), (1.5, 1.65))  # of growing and shrinking
TURNS = ((50.0, 70.0), (130.0, 160.0))  # degrees of rotating, clockwise
HOPS = (1, 2)  # of bouncing, each of a height within `_HOP_HEIGHTS`
_HOP_HEIGHTS = (0.14, 0.18)


@dataclass(frozen=True)
class Path:
    """The drawing over the clip: its way from the start (y grows downwards), size over that of the start, clockwise angle."""

    x_T: Array
    y_T: Array
    zoom_T: Array
    angle_T: Array  # radians


@dataclass(frozen=True)
class Motion:
    """verb, participle: of the captions. ranges: the amount, for each speed. path: from amount and time, 0 to 1."""

    verb: str
    participle: str
    ranges: Sequence[tuple[float, float]]
    path: Callable[[float, Array], Path]


def _moving(step_x: int, step_y: int) -> Callable[[float, Array], Path]:
    def path(way: float, time_T: Array) -> Path:
        still = np.zeros_like(time_T)
        return Path(way * step_x * time_T, way * step_y * time_T, still + 1, still)

    return path


def _growing(sign: int) -> Callable[[float, Array], Path]:
    def path(zoom: float, time_T: Array) -> Path:
        still = np.zeros_like(time_T)
        return Path(still, still, zoom ** (sign * time_T), still)

    return path


def _rotating(degrees: float, time_T: Array) -> Path:
    still = np.zeros_like(time_T)
    return Path(still, still, still + 1, np.radians(degrees) * time_T)


def bounce_height(hops: int, time_T: Array) -> Array:
    """Share of the height of a hop, for every time from 0 to 1."""
    return abs(np.sin(np.pi * hops * time_T))


def _bouncing(amount: float, time_T: Array) -> Path:
    """amount: the number of hops, plus the height of one."""
    still, hops = np.zeros_like(time_T), int(amount)
    return Path(still, -(amount - hops) * bounce_height(hops, time_T), still + 1, still)


MOTIONS = {
    "left": Motion("moves left", "moving left", WAYS, _moving(-1, 0)),
    "right": Motion("moves right", "moving right", WAYS, _moving(1, 0)),
    "up": Motion("moves up", "moving up", WAYS, _moving(0, -1)),
    "down": Motion("moves down", "moving down", WAYS, _moving(0, 1)),
    "grow": Motion("grows", "growing", ZOOMS, _growing(1)),
    "shrink": Motion("shrinks", "shrinking", ZOOMS, _growing(-1)),
    "rotate": Motion("rotates", "rotating", TURNS, _rotating),
    "bounce": Motion(
        "bounces", "bouncing", [(hops + _HOP_HEIGHTS[0], hops + _HOP_HEIGHTS[1]) for hops in HOPS], _bouncing
    ),
}


@dataclass(frozen=True)
class Background:
    """place: its words in captions. color: red, green and blue in [0, 1]. waves: (rows, columns) of light over the picture."""

    place: str
    color: tuple[float, float, float]
    waves: tuple[float, float]


_WAVE = 0.04  # height of the waves, in [0, 1] of the colors

BACKGROUNDS = {
    "snow": Background("on snow", (0.93, 0.94, 0.96), (0.5, 0)),
    "grass": Background("on grass", (0.66, 0.80, 0.60), (0, 3)),
    "sea": Background("on the sea", (0.50, 0.66, 0.78), (3, 0)),
    "night": Background("at night", (0.09, 0.09, 0.24), (0.5, 0)),
}

TEMPLATES = (
    "{an} {object} {verb} {speed} {place}",
    "{place} {an} {object} is {speed} {participle}",
    "{an} {object}, {participle} {speed} {place}",
)


@cache
def draw_background(name: str, size_HW: tuple[int, int]) -> Tensor:
    """The picture without an object, float32 [3, H, W] in [0, 1]."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in size_HW)
    background = BACKGROUNDS[name]
    waves_HW = torch.cos(2 * torch.pi * (background.waves[0] * rows[:, None] + background.waves[1] * columns))
    return torch.tensor(background.color)[:, None, None] + _WAVE * waves_HW


@dataclass(frozen=True)
class ObjectAttributes:
    """Attributes of a clip; see `evaluation/object_adherence.py` for those that pixels do not show."""

    object: str
    motion: str
    background: str
    speed: str

    def caption(self, template: str = TEMPLATES[0]) -> str:
        motion = MOTIONS[self.motion]
        return template.format(
            an="an" if self.object[0] in "aeiou" else "a",
            object=self.object,
            verb=motion.verb,
            participle=motion.participle,
            speed=self.speed,
            place=BACKGROUNDS[self.background].place,
        )


def is_held_out(object_number: int, motion_number: int) -> bool:
    """A fifth of the pairs: one or two motions of each object, 20 objects of each motion."""
    return (object_number + 2 * motion_number) % 5 == 0


def pairs(split: Literal["train", "holdout"]) -> list[tuple[str, str]]:
    """The pairs of object and motion of one split, in a fixed order."""
    return [
        (name, motion)
        for object_number, name in enumerate(object_drawings().names)
        for motion_number, motion in enumerate(MOTIONS)
        if is_held_out(object_number, motion_number) == (split == "holdout")
    ]


def object_combinations(split: Literal["train", "holdout"]) -> list[ObjectAttributes]:
    """Every pair of a split with every background and speed, in a fixed order in which all of them are mixed."""
    ordered = [
        ObjectAttributes(name, motion, background, speed)
        for name, motion in pairs(split)
        for background in BACKGROUNDS
        for speed in SPEEDS
    ]
    return [ordered[place] for place in permutation(len(ordered), 0, "MovingObjects", split)]


def prompts_of_unseen_pairs() -> list[str]:
    """One caption for each held-out pair; backgrounds and speeds take turns."""
    backgrounds, names = list(BACKGROUNDS), pairs("holdout")
    return [
        ObjectAttributes(name, motion, backgrounds[turn % 4], SPEEDS[turn // 4 % 2]).caption()
        for turn, (name, motion) in enumerate(names)
    ]


def render(
    drawings: ObjectDrawings,
    what: ObjectAttributes,
    size_HW: tuple[int, int],
    start: tuple[float, float],
    reach: float,
    path: Path,
) -> Tensor:
    """The clip of an object on a path, float32 [3, T, H, W] in [-1, 1]. start: x and y in pixels; reach: in pixels."""
    short = min(size_HW)
    drawn_4THW = drawings.draw(
        drawings.names.index(what.object),
        size_HW,
        torch.from_numpy(start[0] + short * path.x_T),
        torch.from_numpy(start[1] + short * path.y_T),
        torch.from_numpy(reach * path.zoom_T),
        torch.from_numpy(path.angle_T),
    )
    background_C1HW = draw_background(what.background, size_HW)[:, None]
    return torch.addcmul(drawn_4THW[:3], 1 - drawn_4THW[3:], background_C1HW).mul_(2).sub_(1)


@DATASETS.register_module()
class MovingObjects(DrawnClips):
    """Clips drawn on the fly: the row says which combination, the draw says size, place, amount of motion and wording.

    clips: rows of one epoch; combinations take turns. image_size: (height, width) in pixels; below 64 many drawings look
    alike. fps: frames per second that the clips claim; the way covered in a whole clip does not depend on it.
    Raises DataError when the drawings cannot be read.
    """

    where = "MovingObjects"
    random_properties = ("size", "place", "amount", "wording")

    def __init__(
        self,
        clips: int = 5120,
        num_frames: int = 9,
        image_size: Sequence[int] = (64, 64),
        split: Literal["train", "holdout"] = "train",
        fps: float = 8.0,
    ) -> None:
        super().__init__(clips, num_frames, image_size, fps)
        self.drawings = object_drawings()
        self.combinations = object_combinations(split)

    def attributes(self, row: int) -> ObjectAttributes:
        """Attributes of this row's clip."""
        return self.combinations[row % len(self.combinations)]

    def video(self, row: int, draw: Draw) -> Tensor:
        """Frames in which the object stays inside the picture."""
        what = self.attributes(row)
        height, width = self.image_size
        short = min(height, width)
        reach = short * uniform(draw.rng("size"), *REACHES)
        margin = min(reach + short * WAYS[1][1], short / 2)  # for the longest way, whatever the motion is
        start = draw.rng("start")
        place = uniform(start, margin, width - margin), uniform(start, margin, height - margin)
        motion = MOTIONS[what.motion]
        amount = uniform(draw.rng("amount"), *motion.ranges[SPEEDS.index(what.speed)])
        path = motion.path(amount, np.linspace(0, 1, self.num_frames))
        return render(self.drawings, what, self.image_size, place, reach, path)

    def captions(self, row: int) -> list[str]:
        """Every wording that `caption` can choose."""
        return [self.attributes(row).caption(template) for template in TEMPLATES]

    def settings(self) -> dict[str, Any]:
        """Settings that make a clip of any size from any row; see datasets/feature_store.py."""
        return {"type": "MovingObjects", "fps": self.fps}
