"""A contact sheet: generated clips next to their nearest real clips as one picture.

Of each clip a few frames, and below them the differences between them: those of a still clip are black.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from opensora.datasets.transforms import to_uint8
from opensora.evaluation.motion_ratio import moves_alike

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

AMPLIFY = 4  # times as bright as the difference of two frames: a difference of 64 of 255 levels is full
MARGIN, GAP, LINE = 12, 3, 17  # pixels: around and between blocks, between frames, height of a line of text
INK, FAINT, GOOD, BAD, PAPER = "#1a1a1a", "#6b6b6b", "#1a7f37", "#b42318", "#ffffff"


@dataclass(frozen=True)
class SheetRow:
    """One generated clip and the real clip it is nearest to; clips are [C, T, H, W] in [-1, 1], any size."""

    generated_CTHW: Tensor
    real_CTHW: Tensor
    prompt: str
    real_caption: str
    distance: float  # root mean square pixel difference, see evaluation/retrieval.py
    motion: float | None = None  # of the generated clip over that of its shot, see evaluation/motion_ratio.py


def contact_sheet(rows: Sequence[SheetRow], path: str | Path, *, frames: int = 6, frame_height: int = 64) -> Path:
    """Draw one row per pair, generated left, real right, and write it to `path` as png.

    frames: evenly spaced frames of each clip, fewer where a clip has fewer; below each gap between two of them stands their
    difference. frame_height: pixels. The lines under a row say how much the generated clip moves, where that is known, and
    whether the nearest real clip carries the same caption. Raises ValueError without rows.
    """
    from PIL import Image, ImageDraw

    if not rows:
        raise ValueError("contact sheet: no rows; there must be at least one generated clip")
    strips = [
        (_moving_strip(row.generated_CTHW, frames, frame_height), _moving_strip(row.real_CTHW, frames, frame_height))
        for row in rows
    ]
    column = max(image.width for pair in strips for image in pair)
    strip_height = 2 * frame_height + GAP
    row_height = strip_height + 2 * LINE + MARGIN
    width = 3 * MARGIN + 2 * column
    first = 2 * MARGIN + 2 * LINE  # top of the first row
    sheet = Image.new("RGB", (width, first + len(rows) * row_height), PAPER)
    draw, plain, bold = ImageDraw.Draw(sheet), sheet_font(12), sheet_font(12, bold=True)
    left, right = MARGIN, 2 * MARGIN + column
    draw.text((left, MARGIN), "generated", INK, bold)
    draw.text((right, MARGIN), "nearest real clip", INK, bold)
    legend = f"below the frames: the absolute difference of each two, {AMPLIFY} times as bright; black: nothing moves"
    draw.text((left, MARGIN + LINE), _shorten(legend, draw, plain, width - 2 * MARGIN), FAINT, plain)
    for number, (row, (generated, real)) in enumerate(zip(rows, strips, strict=True)):
        top = first + number * row_height
        same = row.prompt == row.real_caption
        verdict = f"{'same prompt' if same else 'another prompt'}, distance {row.distance:.3f}"
        for x, image, text in ((left, generated, row.prompt), (right, real, row.real_caption)):
            sheet.paste(image, (x, top))
            draw.text((x, top + strip_height + 2), _shorten(text, draw, plain, column), INK, plain)
        draw.text((right, top + strip_height + 2 + LINE), verdict, GOOD if same else BAD, plain)
        size = "{1} frames, {3}x{2}  ".format(*row.generated_CTHW.shape)
        draw.text((left, top + strip_height + 2 + LINE), size, FAINT, plain)
        if row.motion is not None:
            place = left + draw.textlength(size, plain), top + strip_height + 2 + LINE
            moves = f"moves {row.motion:.2f} times as much as the shot of its prompt"
            draw.text(place, moves, GOOD if moves_alike(row.motion) else BAD, plain)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def strip(clip_CTHW: Tensor, frames: int, frame_height: int) -> "Image.Image":
    """Evenly spaced frames side by side, first and last included, each scaled to `frame_height` pixels."""
    return _side_by_side(_picked_frames(clip_CTHW, frames), frame_height)


def difference_strip(clip_CTHW: Tensor, frames: int, frame_height: int) -> "Image.Image | None":
    """The absolute differences of the neighboring frames of `strip`, AMPLIFY times as bright; None for a single frame."""
    frames_THWC = _picked_frames(clip_CTHW, frames).astype(int)
    if len(frames_THWC) < 2:
        return None
    differences = AMPLIFY * np.abs(np.diff(frames_THWC, axis=0))
    return _side_by_side(np.minimum(differences, 255).astype(np.uint8), frame_height)


def _moving_strip(clip_CTHW: Tensor, frames: int, frame_height: int) -> "Image.Image":
    """`strip`, and below it the differences, each half below the one frame and half below the other."""
    from PIL import Image

    above, below = strip(clip_CTHW, frames, frame_height), difference_strip(clip_CTHW, frames, frame_height)
    image = Image.new("RGB", (above.width, 2 * frame_height + GAP), PAPER)
    image.paste(above, (0, 0))
    if below is not None:
        image.paste(below, ((above.width - below.width) // 2, frame_height + GAP))
    return image


def _picked_frames(clip_CTHW: Tensor, frames: int) -> np.ndarray:
    """Evenly spaced frames as bytes, [frames, H, W, C], first and last included."""
    count = clip_CTHW.shape[1]
    picked = torch.linspace(0, count - 1, min(frames, count)).round().long()
    return to_uint8(clip_CTHW.detach().cpu()[:, picked]).permute(1, 2, 3, 0).contiguous().numpy()


def _side_by_side(frames_THWC: np.ndarray, frame_height: int) -> "Image.Image":
    from PIL import Image

    _, height, width, _ = frames_THWC.shape
    frame_width = max(1, round(width * frame_height / height))
    # Small frames keep their pixels visible; large ones are averaged down.
    how = Image.Resampling.NEAREST if frame_height >= height else Image.Resampling.LANCZOS
    image = Image.new("RGB", (len(frames_THWC) * (frame_width + GAP) - GAP, frame_height), PAPER)
    for place, frame in enumerate(frames_THWC):
        image.paste(Image.fromarray(frame).resize((frame_width, frame_height), how), (place * (frame_width + GAP), 0))
    return image


def sheet_font(size: int, bold: bool = False) -> "ImageFont.FreeTypeFont":
    """DejaVu Sans as matplotlib ships it: Pillow's own font lacks most letters outside English."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _shorten(text: str, draw: "ImageDraw.ImageDraw", font: "ImageFont.FreeTypeFont", width: int) -> str:
    text = " ".join(text.split())  # a line break would be drawn over the next row
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
