"""DrawingMatcher: which of the drawings of MovingObjects is this, at which place, size and angle? Without a model.

An object is where a frame differs from its background. Its difference is brought to one place and size, by the middle and the
spread of where it is, and compared with the differences of all drawings at all angles, brought there in the same way.

Layout: T frames, N drawings, A angles (clockwise, from upright), P side of a patch, C colors, H W rows and columns. Lengths are
in pixels.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.datasets.moving_objects import draw_background
from opensora.datasets.object_drawings import ObjectDrawings, object_drawings

ANGLES = 24  # of a whole turn
_PATCH = 16
_WIDTH = 2.1  # half the side of a patch, in spreads of the object
_FAINT, _SURE = 0.08, 0.25  # difference from the background, of the whole range: below none, above wholly the object
_MIN_AREA, _MAX_AREA = 0.005, 0.6  # of the picture: anything outside is no object
_SAMPLE_SIDE, _SAMPLE_REACH = 40, 16.0  # of the drawings that frames are compared with


class Blobs(NamedTuple):
    """The object of each frame. spread: root mean square distance from the middle. patches: [T, C * P * P]."""

    x_T: Tensor
    y_T: Tensor
    spread_T: Tensor
    patches_TD: Tensor


class Match(NamedTuple):
    """The drawing that fits best. error: of the whole difference, 0 to about 1. turn: radians from first to last frame.

    A turn is right to some ten degrees.
    """

    number: int
    error: float
    x_T: np.ndarray  # of the pivot
    y_T: np.ndarray
    reach_T: np.ndarray
    turn: float


def find_blobs(difference_CTHW: Tensor) -> Blobs | None:
    """The one thing that differs from the background; None when a frame shows nothing, or too much of it."""
    height, width = difference_CTHW.shape[2:]
    inside_THW = ((_smooth(difference_CTHW).abs().amax(dim=0) - _FAINT) / (_SURE - _FAINT)).clamp(0, 1)
    area_T = inside_THW.sum(dim=(1, 2))
    if area_T.min() < _MIN_AREA * height * width or area_T.max() > _MAX_AREA * height * width:
        return None
    columns, rows = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    inside_TW, inside_TH = inside_THW.sum(dim=1), inside_THW.sum(dim=2)
    x_T, y_T = (inside_TW @ columns) / area_T, (inside_TH @ rows) / area_T
    square_T = (inside_TW * (columns - x_T[:, None]).square()).sum(dim=1)
    square_T += (inside_TH * (rows - y_T[:, None]).square()).sum(dim=1)
    spread_T = (square_T / area_T).sqrt()
    offsets = (torch.arange(2 * _PATCH) + 0.5) / _PATCH - 1  # two for each side of a patch's pixel, then averaged
    grid_TPP2 = torch.stack(
        [
            ((x_T[:, None] + offsets * _WIDTH * spread_T[:, None]) * (2 / width) - 1)[:, None].expand(
                -1, len(offsets), -1
            ),
            ((y_T[:, None] + offsets * _WIDTH * spread_T[:, None]) * (2 / height) - 1)[..., None].expand(
                -1, -1, len(offsets)
            ),
        ],
        dim=-1,
    )
    sampled_TCPP = F.grid_sample(difference_CTHW.transpose(0, 1), grid_TPP2, align_corners=False)
    patches_TCPP = sampled_TCPP.unflatten(3, (_PATCH, 2)).mean(dim=4).unflatten(2, (_PATCH, 2)).mean(dim=3)
    return Blobs(x_T, y_T, spread_T, patches_TCPP.flatten(1))


def _smooth(pixels_CTHW: Tensor) -> Tensor:
    """The mean of 3x3 pixels, those of the border repeated beyond it."""
    x = F.pad(pixels_CTHW, (1, 1, 1, 1), mode="replicate")
    x = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    return (x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]) / 9


class DrawingMatcher:
    """Drawings in front of one background of MovingObjects."""

    def __init__(self, drawings: ObjectDrawings, background: str) -> None:
        angles_A = torch.arange(ANGLES) * (2 * torch.pi / ANGLES)
        size, middle_A = (_SAMPLE_SIDE, _SAMPLE_SIDE), torch.full((ANGLES,), _SAMPLE_SIDE / 2)
        color_C111 = draw_background(background, size).mean(dim=(1, 2))[:, None, None, None]
        samples = []
        for number in range(len(drawings.names)):
            drawing_4AHW = drawings.draw(
                number, size, middle_A, middle_A, torch.full((ANGLES,), _SAMPLE_REACH), angles_A
            )
            blobs = find_blobs(drawing_4AHW[:3] - drawing_4AHW[3:] * color_C111)
            if blobs is None:
                raise ValueError(f"{drawings.names[number]} cannot be seen on {background}")
            samples.append(blobs)
        self._patches_DK = torch.cat([each.patches_TD for each in samples]).T.contiguous()  # K = N * A
        self._energy_NA = self._patches_DK.square().sum(dim=0).view(-1, ANGLES)
        # From the middle of what differs to the pivot, and from its spread to the reach.
        self._pivot_x_NA, self._pivot_y_NA = (
            (_SAMPLE_SIDE / 2 - torch.stack([getattr(each, axis) for each in samples]))
            / torch.stack([each.spread_T for each in samples])
            for axis in ("x_T", "y_T")
        )
        self._reach_NA = _SAMPLE_REACH / torch.stack([each.spread_T for each in samples])

    def match(self, blobs: Blobs) -> Match:
        """The drawing with the least squared difference, each frame at the angle that suits it."""
        energy_T11 = blobs.patches_TD.square().sum(dim=1)[:, None, None].clamp(min=1e-6)
        product_TNA = (blobs.patches_TD @ self._patches_DK).view(len(energy_T11), -1, ANGLES)
        error_TNA = (energy_T11 + self._energy_NA - 2 * product_TNA) / torch.maximum(energy_T11, self._energy_NA)
        error_N = error_TNA.amin(dim=2).mean(dim=0)
        number = int(error_N.argmin())
        turn, angle_T = _steady_turn(error_TNA[:, number].numpy())
        near_T = torch.from_numpy(np.round(angle_T * ANGLES / (2 * np.pi)).astype(int) % ANGLES)
        return Match(
            number,
            float(error_N[number]),
            (blobs.x_T + self._pivot_x_NA[number, near_T] * blobs.spread_T).numpy(),
            (blobs.y_T + self._pivot_y_NA[number, near_T] * blobs.spread_T).numpy(),
            (self._reach_NA[number, near_T] * blobs.spread_T).numpy(),
            turn,
        )


@cache
def drawing_matcher(background: str) -> DrawingMatcher:
    """The matcher of the shipped drawings in front of a background; made once, in a fraction of a second."""
    return DrawingMatcher(object_drawings(), background)


def _steady_turn(error_TA: np.ndarray) -> tuple[float, np.ndarray]:
    """The turn at constant speed, of at most half a circle, with the least error; and the angle of every frame."""
    frames = len(error_TA)
    starts_S = np.arange(0, ANGLES, 0.5)
    turns_R = np.arange(-ANGLES / 2, ANGLES / 2 + 0.25, 0.5) if frames > 1 else np.zeros(1)
    angle_SRT = starts_S[:, None, None] + turns_R[:, None] * np.linspace(0, 1, frames)
    below_SRT = np.floor(angle_SRT).astype(int)
    share_SRT, time_T = angle_SRT - below_SRT, np.arange(frames)
    errors = error_TA[time_T, below_SRT % ANGLES] * (1 - share_SRT)
    errors += error_TA[time_T, (below_SRT + 1) % ANGLES] * share_SRT
    start, turn = np.unravel_index(errors.sum(axis=2).argmin(), errors.shape[:2])
    step = 2 * np.pi / ANGLES
    return float(turns_R[turn]) * step, angle_SRT[start, turn] * step
