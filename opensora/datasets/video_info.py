"""VideoInfo: size, rate and length of a file, and the frames that a file gives; shared by the readers of files.

Layout: T frames, H W rows and columns, C colors (red, green, blue), uint8.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class VideoInfo:
    """Size, rate and length of a file, from its header and first frame."""

    path: str
    num_frames: int
    rate: Fraction  # frames per second
    height: int  # square pixels, as shown
    width: int  # square pixels, as shown
    stored_height: int = 0  # pixels of the data: before turning, and before the pixels are made square
    stored_width: int = 0

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


@dataclass(frozen=True)
class FileFacts:
    """Facts that take a pass over the whole file; kept by a caller, they save that pass at the next visit."""

    num_frames: int
    rate: Fraction  # frames per second
    by_order: bool = False  # the times of frames are of no use: a frame's index is its place in the file
    times: tuple[Fraction, ...] = ()  # seconds at which the frames of an animated picture begin, and its end


@dataclass(frozen=True)
class MediaDetails:
    """Facts about the coding of a file, which readers of frames need not know."""

    codec: str  # FFmpeg's name, or the picture format
    pix_fmt: str  # FFmpeg's name, or Pillow's mode
    rotation: int  # degrees clockwise by which the stored picture is turned to be shown
    pixel_aspect: float  # width of a stored pixel over its height
    variable_rate: bool  # frames are not evenly spaced
    audio: bool  # there is a sound track
    bitrate: int | None  # bits per second of the film; None for a picture


class Shown(NamedTuple):
    """A decoded frame and the indices at which it is on screen."""

    number: int
    last: int
    frame: Any  # of the library that decoded it; `pixels` of the reader turns it into an array


def shrunk(height: int, width: int, widest: int | None) -> tuple[int, int]:
    """Height and width of a picture that is made as narrow as `widest` pixels; a narrower one stays."""
    if widest is None or width <= widest:
        return height, width
    return max(1, round(height * widest / width)), widest


def over_white(rgba_HWC: Frames) -> Frames:
    """Colors [H, W, 3] of a picture [H, W, 4] laid over white.

    Where nothing at all would be seen, the colors are taken as they are: programs that know no transparency write zeros.
    """
    colors, alpha = rgba_HWC[..., :3], rgba_HWC[..., 3:].astype(np.uint16)
    if (alpha.all() and alpha.min() == 255) or not alpha.any():
        return np.ascontiguousarray(colors)
    mixed = colors * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
