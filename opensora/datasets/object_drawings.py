"""ObjectDrawings: the named drawings of assets/objects, drawn at any place, size and angle.

Layout: channels are red, green, blue and coverage in [0, 1], the colors premultiplied by it. T frames, H W rows and columns.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "objects"
NAMES_FILE, SHEET_FILE = "names.json", "drawings.png"
SIDE = 64  # pixels of one drawing of the sheet
COLUMNS = 10  # drawings in one row of the sheet
_BLURS = 6  # level n is for drawings made 2**n times smaller: without it, small ones would lose lines between pixels
_VISIBLE = 0.1  # coverage from which a pixel counts for the reach


class ObjectDrawings:
    """Drawings by name. Each turns and grows about its pivot, the middle of its area.

    names: in the order of the sheet. Raises DataError when the folder is not there or its sheet does not fit the names.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.names, sheet_NCHW = _read(folder)
        area_N11 = sheet_NCHW[:, 3].sum(dim=(1, 2), keepdim=True)
        centers = torch.arange(SIDE) + 0.5
        self.pivot_x_N = (sheet_NCHW[:, 3] / area_N11 * centers).sum(dim=(1, 2))
        self.pivot_y_N = (sheet_NCHW[:, 3] / area_N11 * centers[:, None]).sum(dim=(1, 2))
        distance_NHW = torch.hypot(
            centers - self.pivot_x_N[:, None, None], centers[:, None] - self.pivot_y_N[:, None, None]
        )
        self.reach_N = (distance_NHW * (sheet_NCHW[:, 3] > _VISIBLE)).amax(dim=(1, 2))  # farthest from the pivot
        self._sheet_NCHW = sheet_NCHW
        self._blurred: dict[int, Tensor] = {}

    def draw(
        self,
        number: int,
        size_HW: tuple[int, int],
        x_T: Sequence[float] | Tensor,
        y_T: Sequence[float] | Tensor,
        reach_T: Sequence[float] | Tensor,
        angle_T: Sequence[float] | Tensor,
    ) -> Tensor:
        """The drawing in every frame, [4, T, H, W].

        x_T, y_T: the pivot, in pixels; pixel (0, 0) spans [0, 1). reach_T: in pixels, from the pivot to the farthest point of
        the drawing. angle_T: radians, clockwise.
        """
        x_T, y_T, reach_T, angle_T = (
            torch.as_tensor(each, dtype=torch.float32) for each in (x_T, y_T, reach_T, angle_T)
        )
        top, bottom = _span(y_T, reach_T, size_HW[0])  # sampling is most of the time, so it leaves out what stays empty
        left, right = _span(x_T, reach_T, size_HW[1])
        drawn_4THW = torch.zeros(4, len(x_T), *size_HW)
        if top == bottom or left == right:
            return drawn_4THW
        scale_T = self.reach_N[number] / reach_T  # pixels of the sheet in one of the picture
        columns = torch.arange(left, right) + 0.5 - x_T[:, None, None]
        rows = (torch.arange(top, bottom) + 0.5)[:, None] - y_T[:, None, None]
        cos_T11, sin_T11 = ((scale_T * each * (2 / SIDE))[:, None, None] for each in (angle_T.cos(), angle_T.sin()))
        grid_THW2 = torch.stack(
            [
                cos_T11 * columns + sin_T11 * rows + (self.pivot_x_N[number] * (2 / SIDE) - 1),
                cos_T11 * rows - sin_T11 * columns + (self.pivot_y_N[number] * (2 / SIDE) - 1),
            ],
            dim=-1,
        )
        level_T = scale_T.log2().clamp(0, _BLURS - 1)
        levels = range(int(level_T.min()), int(level_T.max().ceil()) + 1)
        blurred_KHW = self._blurred_drawing(number)[levels.start : levels.stop].flatten(0, 1)
        sampled_TKHW = F.grid_sample(blurred_KHW.expand(len(x_T), -1, -1, -1), grid_THW2, align_corners=False)
        for part_T4HW, level in zip(sampled_TKHW.split(4, dim=1), levels, strict=True):
            share_T = (1 - (level_T - level).abs()).clamp(min=0)
            drawn_4THW[:, :, top:bottom, left:right] += (share_T[:, None, None, None] * part_T4HW).transpose(0, 1)
        return drawn_4THW

    def _blurred_drawing(self, number: int) -> Tensor:
        """The drawing at every level of blur, [_BLURS, 4, SIDE, SIDE]."""
        if number not in self._blurred:
            drawing = self._sheet_NCHW[number]
            self._blurred[number] = torch.stack([_blur(drawing, 2.0**level) for level in range(_BLURS)])
        return self._blurred[number]


def _span(center_T: Tensor, reach_T: Tensor, side: int) -> tuple[int, int]:
    """First and last rows or columns in which any frame shows the object with its soft rim, the last one exclusive."""
    rim = 2 + reach_T / 8
    first = min(max(int((center_T - reach_T - rim).min()), 0), side)
    return first, min(max(int((center_T + reach_T + rim).max()) + 1, first), side)


@cache
def object_drawings() -> ObjectDrawings:
    """The drawings that ship with the project; read once."""
    return ObjectDrawings()


def _read(folder: Path) -> tuple[list[str], Tensor]:
    from PIL import Image

    try:
        names = list(json.loads((folder / NAMES_FILE).read_text(encoding="utf-8")))
        sheet = np.asarray(Image.open(folder / SHEET_FILE).convert("RGBA"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: the drawings of MovingObjects cannot be read ({error}); allowed: a folder with {NAMES_FILE} and "
            f"{SHEET_FILE}; install opensora from a checkout with `pip install -e .`"
        ) from None
    rows = -(-len(names) // COLUMNS)
    if sheet.shape[:2] != (rows * SIDE, COLUMNS * SIDE):
        raise DataError(
            f"{folder / SHEET_FILE}: found {sheet.shape[1]}x{sheet.shape[0]} pixels; {len(names)} names need "
            f"{COLUMNS * SIDE}x{rows * SIDE}; render the sheet again, see {folder / 'README.md'}"
        )
    tiles = torch.from_numpy(sheet.copy()).view(rows, SIDE, COLUMNS, SIDE, 4).permute(0, 2, 4, 1, 3)
    drawings_NCHW = tiles.reshape(-1, 4, SIDE, SIDE)[: len(names)].float() / 255
    drawings_NCHW[:, :3] *= drawings_NCHW[:, 3:]
    return names, drawings_NCHW


def _blur(drawing_CHW: Tensor, factor: float) -> Tensor:
    """Smoothed so that every `factor`-th pixel stands for its surroundings."""
    sigma = 0.5 * (factor**2 - 1) ** 0.5  # with the filter of the sampling itself, half of `factor`
    if not sigma:
        return drawing_CHW
    reach = int(3 * sigma + 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    lines = F.conv1d(drawing_CHW.reshape(-1, 1, SIDE), kernel, padding=reach).view(4, SIDE, SIDE)
    columns = F.conv1d(lines.transpose(1, 2).reshape(-1, 1, SIDE), kernel, padding=reach)
    return columns.view(4, SIDE, SIDE).transpose(1, 2).contiguous()
