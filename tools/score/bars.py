"""Bars and frames around the picture: black ones, and those of another even color.

Shapes: T frames, H W rows and columns; gray values are uint8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.decode import Frames

_EVEN_BLACK, _EVEN = (
    10,
    4,
)  # gray levels around the middle value of a bar that coding leaves; a wall or pavement has more
_EVEN_SHARE = 0.8  # of a bar's pixels; the rest may be subtitles
_EDGE_SHARE = (
    0.3  # of a bar's length along which the picture next to it differs, in some frame: a night sky has no edge
)
_EDGE_LINES = 3  # in which the picture must begin to differ
_BLACK = 24  # gray levels up to which a bar is black: 16 is the black of video, and coding adds to it


@dataclass(frozen=True)
class Bars:
    """Rows and columns of even color at the four sides, and the gray value of each side's; 0 rows have value 0."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    values: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def depths(self) -> tuple[int, int, int, int]:
        return self.top, self.bottom, self.left, self.right

    def only(self, *, black: bool) -> "Bars":
        """The black bars, or the others; of the others, those on both of two opposite sides.

        A white sky above a straight horizon looks like a bar at one side.
        """
        kept = [depth if (value <= _BLACK) is black else 0 for depth, value in zip(self.depths, self.values)]
        for one, other in () if black else ((0, 1), (2, 3)):
            if not kept[one] or not kept[other]:
                kept[one] = kept[other] = 0
        top, bottom, left, right = kept
        return Bars(top, bottom, left, right, self.values)

    def share(self, height: int, width: int) -> float:
        """Share of the frame's area that the bars cover."""
        inside = (height - self.top - self.bottom) * (width - self.left - self.right)
        return 1 - inside / (height * width)

    def crop(self, frames: Frames, margin: int = 0) -> Frames:
        """[..., H, W] or, with `margin`, less that many lines at each side that has a bar, where lossy coding blurs."""
        height, width = frames.shape[-2:]
        top, bottom, left, right = (depth + margin if depth else 0 for depth in self.depths)
        if top + bottom >= height or left + right >= width:
            return frames
        return frames[..., top : height - bottom, left : width - right]


def gray_frame(frame: Frames) -> Frames:
    """[H, W, 3] as gray [H, W]."""
    from PIL import Image

    return np.asarray(Image.fromarray(frame).convert("L"))


def find_bars(frames: Frames | Sequence[Frames]) -> Bars:
    """The bars of gray frames [T, H, W]: even in color over the frames, with a straight edge to the picture.

    Frames of one color all over have none.
    """
    gray = np.asarray(frames)
    top, top_value = _depth(gray)
    bottom, bottom_value = _depth(gray[:, ::-1])
    if top + bottom >= gray.shape[1]:
        return Bars()
    inner = gray[:, top : gray.shape[1] - bottom].transpose(0, 2, 1)
    left, left_value = _depth(inner)
    right, right_value = _depth(inner[:, ::-1])
    if left + right >= gray.shape[2]:
        return Bars()
    return Bars(top, bottom, left, right, (top_value, bottom_value, left_value, right_value))


def _depth(gray: NDArray[np.uint8]) -> tuple[int, int]:
    """(rows, gray value) of the bar at the top of frames [T, H, W]; (0, 0) where there is none."""
    value = int(np.median(gray[:, 0]))
    differs = np.abs(gray.astype(np.int16) - value) > (_EVEN_BLACK if value <= _BLACK else _EVEN)
    even = 1 - differs.mean(axis=(0, 2)) >= _EVEN_SHARE
    if even.all() or not even[0]:
        return 0, 0
    depth = int(np.argmin(even))
    edge = differs[:, depth : depth + _EDGE_LINES].any(axis=(0, 1)).mean()
    return (depth, value) if edge >= _EDGE_SHARE else (0, 0)
