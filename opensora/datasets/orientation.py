"""Orientation: how stored pixels are turned and mirrored to be shown, for videos (display matrix) and pictures (EXIF)."""

from dataclasses import dataclass

import numpy as np

from opensora.datasets.video_info import Frames


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to show a picture: rows and columns are swapped first, then the flips are made."""

    swapped: bool = False  # rows become columns
    flip_rows: bool = False  # top to bottom
    flip_columns: bool = False  # left to right

    @staticmethod
    def of_matrix(matrix: tuple[int, ...]) -> "Orientation":
        """The orientation nearest to a display matrix of nine numbers, row by row: x' = a x + c y, y' = b x + d y."""
        a, b, _, c, d = matrix[:5]
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return Orientation(False, flip_rows=d < 0, flip_columns=a < 0)
        return Orientation(True, flip_rows=b < 0, flip_columns=c < 0)

    @staticmethod
    def of_exif(value: object) -> "Orientation":
        """The orientation of EXIF's tag 274, 1 to 8; anything else is "as stored"."""
        return EXIF.get(value, Orientation()) if isinstance(value, int) else Orientation()

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as shown."""
        return (width, height) if self.swapped else (height, width)

    @property
    def degrees(self) -> int:
        """Clockwise turn: 0, 90, 180 or 270; of a mirrored picture, the turn after it is mirrored left to right."""
        if self.swapped:
            return 90 if self.flip_columns else 270
        return 180 if self.flip_rows else 0

    def apply(self, image_HWC: Frames) -> Frames:
        """The picture as shown."""
        if self == Orientation():
            return image_HWC
        shown = image_HWC.swapaxes(0, 1) if self.swapped else image_HWC
        shown = shown[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]
        return np.ascontiguousarray(shown)


EXIF = {
    2: Orientation(flip_columns=True),
    3: Orientation(flip_rows=True, flip_columns=True),
    4: Orientation(flip_rows=True),
    5: Orientation(swapped=True),
    6: Orientation(swapped=True, flip_columns=True),  # a quarter turn clockwise
    7: Orientation(swapped=True, flip_rows=True, flip_columns=True),
    8: Orientation(swapped=True, flip_rows=True),
}
