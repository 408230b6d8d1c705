"""Adherence of a generated MovingObjects clip to the object, motion, background and speed of its prompt.

Read from pixels by geometry alone, no model. The background is the one that most pixels are nearest to. The object is the
drawing whose difference from it fits best at any place, size and angle. The motion is what changes most steadily over the clip:
the place along an axis, the size, the angle, or hops; its amount says the speed. An attribute that cannot be read is "unclear"
and counts as wrong.

Layout: C colors (red, green, blue) in [-1, 1], T frames, H W rows and columns.
"""

import re

import numpy as np
from torch import Tensor

from opensora.datasets.moving_objects import (
    BACKGROUNDS,
    MOTIONS,
    SPEEDS,
    TURNS,
    WAYS,
    ZOOMS,
    ObjectAttributes,
    bounce_height,
    draw_background,
)
from opensora.datasets.moving_shapes import UNCLEAR
from opensora.datasets.object_drawings import object_drawings
from opensora.evaluation.drawing_matcher import Match, drawing_matcher, find_blobs

_MAX_BACKGROUND_ERROR = 0.1  # median difference from the nearest background, of the whole range
_MAX_OBJECT_ERROR = 0.5  # of the squared difference to the background, for a drawing to count
_MIN_AMOUNT = 0.5  # of the amount of a slow motion, for a motion to count
_MIN_STEADINESS = 1.5  # amount of the motion over the next one, both of their slow amounts
_HOP_HEIGHT = 0.16  # of the shorter side: a usual one


def detect_object_attributes(video_CTHW: Tensor) -> ObjectAttributes:
    """The attributes of the one object in the clip; without one in every frame, only the background is read."""
    pixels_CTHW = (video_CTHW.detach().float().cpu().clamp(-1, 1) + 1) / 2
    background, difference_CTHW = _read_background(pixels_CTHW)
    blobs = None if background == UNCLEAR else find_blobs(difference_CTHW)
    if blobs is None:
        return ObjectAttributes(UNCLEAR, UNCLEAR, background, UNCLEAR)
    match = drawing_matcher(background).match(blobs)
    motion, speed = _read_motion(match, min(pixels_CTHW.shape[2:]))
    name = object_drawings().names[match.number] if match.error <= _MAX_OBJECT_ERROR else UNCLEAR
    return ObjectAttributes(name, motion, background, speed)


def _read_background(pixels_CTHW: Tensor) -> tuple[str, Tensor]:
    """The nearest background, and the difference of the pixels from it, its usual part removed: [C, T, H, W]."""
    size_HW = (pixels_CTHW.shape[2], pixels_CTHW.shape[3])
    sparse_CTHW = pixels_CTHW[..., ::2, ::2]  # medians need no more, and are most of the time
    sparse = {name: sparse_CTHW - draw_background(name, size_HW)[:, None, ::2, ::2] for name in BACKGROUNDS}
    errors = {name: each.abs().mean(dim=0).median().item() for name, each in sparse.items()}
    name = min(errors, key=errors.__getitem__)
    offset_C1 = sparse[name].flatten(1).median(dim=1, keepdim=True).values  # an autoencoder shifts colors a little
    difference_CTHW = pixels_CTHW - (draw_background(name, size_HW) + offset_C1[..., None])[:, None]
    return name if errors[name] <= _MAX_BACKGROUND_ERROR else UNCLEAR, difference_CTHW


def _read_motion(match: Match, side: int) -> tuple[str, str]:
    """Motion and speed; see `_MIN_AMOUNT` and `_MIN_STEADINESS` for what is clear."""
    frames = len(match.x_T)
    if frames < 2:
        return UNCLEAR, UNCLEAR
    time_T = np.linspace(0, 1, frames)
    way_x = np.polyfit(time_T, match.x_T, 1)[0] / side
    zoom = np.polyfit(time_T, np.log(match.reach_T), 1)[0]
    fits = [_fit_hops(match.y_T / side, hops, time_T) for hops in (1, 2)]
    way_y, hop_height, _ = min(fits, key=lambda fit: fit[2])
    amounts = {
        "right" if way_x > 0 else "left": (abs(way_x), *_limits(WAYS)),
        "down" if way_y > 0 else "up": (abs(way_y), *_limits(WAYS)),
        "grow" if zoom > 0 else "shrink": (abs(zoom), *_limits(np.log(ZOOMS))),
        "rotate": (abs(match.turn), *_limits(np.radians(TURNS))),
        "bounce": (hop_height, _HOP_HEIGHT, 0.0),
    }
    shares = {name: amount / slow for name, (amount, slow, _) in amounts.items()}
    motion, other = sorted(shares, key=shares.__getitem__, reverse=True)[:2]
    if shares[motion] < _MIN_AMOUNT or shares[motion] < _MIN_STEADINESS * shares[other]:
        return UNCLEAR, UNCLEAR
    if motion == "bounce":
        return motion, SPEEDS[int(fits[1][2] < fits[0][2])]
    amount, _, limit = amounts[motion]
    return motion, SPEEDS[int(amount > limit)]


def _limits(ranges: np.ndarray | tuple) -> tuple[float, float]:
    """The middle of the slow range, and the middle between slow and quick."""
    (low, high), (quick_low, _) = ranges
    return (low + high) / 2, (high + quick_low) / 2


def _fit_hops(y_T: np.ndarray, hops: int, time_T: np.ndarray) -> tuple[float, float, float]:
    """Way along the axis, height of the hops on it, and the squared error of both together."""
    basis = np.stack([np.ones_like(time_T), time_T, -bounce_height(hops, time_T)], axis=1)
    fit = np.linalg.lstsq(basis, y_T, rcond=1e-6)[0]
    return float(fit[1]), float(fit[2]), float(np.square(basis @ fit - y_T).sum())


def object_attributes_in_prompt(prompt: str) -> ObjectAttributes:
    """The attributes a prompt names; ValueError unless it names exactly one of each kind."""
    words = re.findall(r"[a-z]+", prompt.lower())
    kinds = {
        "object": {name: [name] for name in object_drawings().names},
        "motion": {name: [motion.verb.split()[-1], motion.participle.split()[-1]] for name, motion in MOTIONS.items()},
        "background": {name: [background.place.split()[-1]] for name, background in BACKGROUNDS.items()},
        "speed": {name: [name] for name in SPEEDS},
    }
    named = {
        kind: [name for name, forms in names.items() if any(form in words for form in forms)]
        for kind, names in kinds.items()
    }
    if any(len(names) != 1 for names in named.values()):
        raise ValueError(
            f"prompt {prompt!r}: adherence needs exactly one object of {object_drawings().names[0]}, ..., "
            f"{object_drawings().names[-1]} (assets/objects/names.json), one motion of {', '.join(MOTIONS)}, one background of "
            f"{', '.join(BACKGROUNDS)} and one speed of {', '.join(SPEEDS)}"
        )
    return ObjectAttributes(**{kind: names[0] for kind, names in named.items()})
