"""Length and size that the clips of each row can have, as columns; buckets are chosen by them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.manifest import Columns

ROUNDING = 1e-3  # frames: times are written with few digits, and must not move a boundary by one
NO_FRAMES = -1  # frames of a row whose start, end or time_range leave none


def frames_between(start: float | None, end: float | None, fps: float, num_frames: int) -> tuple[int, int]:
    """First frame and end (exclusive) of the seconds from `start` to `end` of a file; None: from its start, to its end."""
    first = 0 if start is None else math.ceil(start * fps - ROUNDING)
    return first, num_frames if end is None else min(num_frames, math.ceil(end * fps - ROUNDING))


@dataclass(frozen=True)
class ClipSizes:
    """An array [n] each, for the n rows of a data set; 0: not known."""

    index: NDArray[np.int64]  # row of the manifest, from 0
    num_frames: NDArray[np.int32]  # that a clip may take, at its rate; an image has 1; NO_FRAMES: none is left
    height: NDArray[np.int32]  # pixels
    width: NDArray[np.int32]  # pixels


def usable_frames(columns: Columns, time_range: tuple[float, float]) -> NDArray[np.int64]:
    """Frames that each row's start and end and `time_range` leave, or NO_FRAMES; 0 where the manifest leaves it out."""
    known = (columns.num_frames > 0) & ((np.isnan(columns.start) & np.isnan(columns.end)) | ~np.isnan(columns.fps))
    first = np.ceil(np.nan_to_num(columns.start * columns.fps) - ROUNDING * ~np.isnan(columns.start))
    end = np.ceil(columns.end * columns.fps - ROUNDING)
    stop = np.fmin(columns.num_frames, end)  # a missing end is no limit
    length = np.maximum(0, stop - first)
    low, high = (np.trunc(length * part + ROUNDING) for part in time_range)
    is_image = (columns.num_frames == 1) & (length == 1)  # cannot be divided
    frames = np.where(is_image, 1, high - low)
    return np.where(known, np.where(frames > 0, frames, NO_FRAMES), 0).astype(np.int64)


def frames_at_rate(frames: NDArray[np.int64], fps: NDArray[np.float64], rate: float | None) -> NDArray[np.int64]:
    """Frames of each span once it is brought from `fps` to `rate` frames per second (None: as it is).

    0 where fps is not known, except for images and where no frame is left.
    """
    if rate is None:
        return frames
    with np.errstate(invalid="ignore"):
        resampled = np.floor((frames - 1) * (rate / fps) + ROUNDING) + 1
    return np.where(frames <= 1, frames, np.nan_to_num(resampled)).astype(np.int64)
