"""Adherence of a generated MovingShapes clip to the color, shape and direction of its prompt.

Read from pixels by geometry alone, no model: the brightest blob of each frame gives color (nearest of the palette),
shape (best overlap with the drawn outlines at the blob's own centre and area) and direction (where its centre goes).
An attribute that cannot be read is "unclear" and counts as wrong.

Layout: B clips, C colors (red, green, blue) in [-1, 1], T frames, H W rows and columns. Lengths are in pixels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opensora.datasets.moving_shapes import COLORS, DIRECTIONS, RADII, SHAPES, UNCLEAR, WAYS, Attributes, coverage

NOTHING = Attributes(UNCLEAR, UNCLEAR, UNCLEAR)
_MIN_CONTRAST = 0.2  # of the full range: below, a frame is empty
_MIN_AREA, _MAX_AREA = 0.02, 0.4  # of the picture: a blob outside is no object
_MIN_OVERLAP = 0.65  # intersection over union with the best outline, for a shape to count
_MAX_COLOR_DISTANCE = 0.5  # from the nearest palette color, red, green and blue in [0, 1]
_MIN_WAY = 0.1  # of the shorter side, between first and last frame
_MIN_STRAIGHTNESS = 2.0  # way along the main axis over way along the other


@dataclass(frozen=True)
class Accuracy:
    """Share of clips that show the prompt's attribute, each in [0, 1]; `all` counts clips with the three right at once."""

    colour: float  # the key of printed results, kept
    shape: float
    direction: float
    all: float
    clips: int


def detect_attributes(video_CTHW: Tensor) -> Attributes:
    """The attributes of the one object in the clip; all unclear when there is not one object in every frame."""
    pixels = (video_CTHW.detach().float().cpu().numpy().clip(-1, 1) + 1) / 2
    blob = _find_blob(pixels)
    if blob is None:
        return NOTHING
    return Attributes(
        color=_read_color(pixels, blob.inside_THW),
        shape=_read_shape(blob),
        direction=_read_direction(blob.x_T, blob.y_T, min(pixels.shape[2:])),
    )


class _Blob(NamedTuple):
    """The one object of a clip: how far each pixel belongs to it, 0 to 1, its center and its area."""

    inside_THW: np.ndarray
    x_T: np.ndarray
    y_T: np.ndarray
    area_T: np.ndarray


def _find_blob(pixels_CTHW: np.ndarray) -> _Blob | None:
    """None when there is not one object in every frame."""
    background_C = np.median(pixels_CTHW, axis=(1, 2, 3))
    contrast_THW = np.abs(pixels_CTHW - background_C[:, None, None, None]).max(axis=0)
    peak_T = np.percentile(contrast_THW, 97, axis=(1, 2))
    if peak_T.min() < _MIN_CONTRAST:
        return None
    inside_THW = np.clip(contrast_THW / peak_T[:, None, None], 0, 1)
    inside_THW = np.where(inside_THW < 0.25, 0.0, inside_THW)  # noise and ringing of the background
    area_T = inside_THW.sum(axis=(1, 2))
    height, width = inside_THW.shape[1:]
    if area_T.min() < _MIN_AREA * height * width or area_T.max() > _MAX_AREA * height * width:
        return None
    x_T = (inside_THW.sum(axis=1) * (np.arange(width) + 0.5)).sum(axis=1) / area_T
    y_T = (inside_THW.sum(axis=2) * (np.arange(height) + 0.5)).sum(axis=1) / area_T
    return _Blob(inside_THW, x_T, y_T, area_T)


def ideal_clip(video_CTHW: Tensor, wanted: Attributes) -> Tensor:
    """The clip that MovingShapes would draw of `wanted` at the place and size of the video's object; its shape, [-1, 1].

    Size and way are held within those of MovingShapes; without an object in every frame, the drawing is of middle size, in
    the middle. So the distance to it grows with every wrong color, outline, direction and unsteady step.
    """
    pixels_CTHW = (video_CTHW.detach().float().cpu().numpy().clip(-1, 1) + 1) / 2
    frames, height, width = pixels_CTHW.shape[1:]
    short, (step_x, step_y) = min(height, width), DIRECTIONS[wanted.direction]
    blob = _find_blob(pixels_CTHW)
    x, y, radius, way = width / 2, height / 2, np.mean(RADII) * short, np.mean(WAYS) * short
    if blob is not None:
        x, y = blob.x_T.mean(), blob.y_T.mean()
        radius = np.sqrt(blob.area_T.mean() / np.pi).clip(*(side * short for side in RADII))
        along_T = blob.x_T * step_x + blob.y_T * step_y
        slope = np.polyfit(np.arange(frames), along_T, 1)[0] if frames > 1 else 0.0
        way = np.clip(slope * (frames - 1), *(side * short for side in WAYS))
    step_T = np.linspace(-way / 2, way / 2, frames) if frames > 1 else np.zeros(1)
    inside_THW = coverage(wanted.shape, (height, width), x + step_x * step_T, y + step_y * step_T, radius)
    drawn_CTHW = np.array(COLORS[wanted.color])[:, None, None, None] * inside_THW[None] * 2 - 1
    return torch.from_numpy(drawn_CTHW.astype(np.float32))


def _read_color(pixels_CTHW: np.ndarray, inside_THW: np.ndarray) -> str:
    mean_C = pixels_CTHW[:, inside_THW > 0.8].mean(axis=1)
    distances = {name: float(np.linalg.norm(mean_C - np.array(rgb))) for name, rgb in COLORS.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] < _MAX_COLOR_DISTANCE else UNCLEAR


def _read_shape(blob: _Blob) -> str:
    inside_THW, x_T, y_T, area_T = blob
    overlaps = {}
    for name in SHAPES:
        outline_THW = coverage(name, inside_THW.shape[1:], x_T, y_T, np.sqrt(area_T / np.pi))
        common_T = np.minimum(inside_THW, outline_THW).sum(axis=(1, 2))
        overlaps[name] = float((common_T / np.maximum(inside_THW, outline_THW).sum(axis=(1, 2))).mean())
    name = max(overlaps, key=overlaps.__getitem__)
    return name if overlaps[name] >= _MIN_OVERLAP else UNCLEAR


def _read_direction(x_T: np.ndarray, y_T: np.ndarray, side: int) -> str:
    if len(x_T) < 2:
        return UNCLEAR
    time_T = np.arange(len(x_T))
    way_x, way_y = (np.polyfit(time_T, centre_T, 1)[0] * (len(x_T) - 1) for centre_T in (x_T, y_T))
    main, other = max(abs(way_x), abs(way_y)), min(abs(way_x), abs(way_y))
    if main < _MIN_WAY * side or main < _MIN_STRAIGHTNESS * other:
        return UNCLEAR
    sign = (int(np.sign(way_x)), 0) if abs(way_x) > abs(way_y) else (0, int(np.sign(way_y)))
    return next(name for name, step in DIRECTIONS.items() if step == sign)


def attributes_in_prompt(prompt: str) -> Attributes:
    """The attributes a prompt names; ValueError unless it names exactly one color, shape and direction."""
    words = set(re.findall(r"[a-z]+", prompt.lower()))
    matches = [[name for name in names if name in words] for names in (COLORS, SHAPES, DIRECTIONS)]
    if any(len(names) != 1 for names in matches):
        raise ValueError(
            f"prompt {prompt!r}: adherence needs exactly one color of {', '.join(COLORS)}, one shape of "
            f"{', '.join(SHAPES)} and one direction of {', '.join(DIRECTIONS)}"
        )
    return Attributes(*(names[0] for names in matches))


def accuracy(videos: Sequence[Tensor], prompts: Sequence[str]) -> Accuracy:
    """Compare clips [C, T, H, W] in [-1, 1] with their prompts, one prompt per clip."""
    if len(videos) != len(prompts) or not len(videos):
        raise ValueError(
            f"adherence: {len(videos)} clips and {len(prompts)} prompts; give one prompt per clip, at least one"
        )
    pairs = [
        (detect_attributes(video), attributes_in_prompt(prompt)) for video, prompt in zip(videos, prompts, strict=True)
    ]
    hits = np.array(
        [
            (shown.color == wanted.color, shown.shape == wanted.shape, shown.direction == wanted.direction)
            for shown, wanted in pairs
        ]
    )
    color, shape, direction = hits.mean(axis=0).tolist()
    return Accuracy(color, shape, direction, all=float(hits.all(axis=1).mean()), clips=len(hits))
