"""A contact sheet: generated clips next to their nearest real clips, a few frames of each, as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from opensora.datasets.transforms import to_uint8

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

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


def contact_sheet(rows: Sequence[SheetRow], path: str | Path, *, frames: int = 4, frame_height: int = 96) -> Path:
    """Draw one row per pair, generated left, real right, and write it to `path` as png.

    frames: evenly spaced frames of each clip, fewer where a clip has fewer. frame_height: pixels.
    The line under a row says whether the nearest real clip carries the same caption. Raises ValueError without rows.
    """
    from PIL import Image, ImageDraw

    if not rows:
        raise ValueError("contact sheet: no rows; there must be at least one generated clip")
    strips = [
        (strip(row.generated_CTHW, frames, frame_height), strip(row.real_CTHW, frames, frame_height)) for row in rows
    ]
    column = max(image.width for pair in strips for image in pair)
    row_height = frame_height + 2 * LINE + MARGIN
    width = 3 * MARGIN + 2 * column
    sheet = Image.new("RGB", (width, 2 * MARGIN + LINE + len(rows) * row_height), PAPER)
    draw, plain, bold = ImageDraw.Draw(sheet), sheet_font(12), sheet_font(12, bold=True)
    left, right = MARGIN, 2 * MARGIN + column
    draw.text((left, MARGIN), "generated", INK, bold)
    draw.text((right, MARGIN), "nearest real clip", INK, bold)
    for number, (row, (generated, real)) in enumerate(zip(rows, strips, strict=True)):
        top = 2 * MARGIN + LINE + number * row_height
        same = row.prompt == row.real_caption
        verdict = f"{'same prompt' if same else 'another prompt'}, distance {row.distance:.3f}"
        for x, image, text in ((left, generated, row.prompt), (right, real, row.real_caption)):
            sheet.paste(image, (x, top))
            draw.text((x, top + frame_height + 2), _shorten(text, draw, plain, column), INK, plain)
        draw.text((right, top + frame_height + 2 + LINE), verdict, GOOD if same else BAD, plain)
        size = "{1} frames, {3}x{2}".format(*row.generated_CTHW.shape)
        draw.text((left, top + frame_height + 2 + LINE), size, FAINT, plain)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def strip(clip_CTHW: Tensor, frames: int, frame_height: int) -> "Image.Image":
    """Evenly spaced frames side by side, first and last included, each scaled to `frame_height` pixels."""
    from PIL import Image

    count = clip_CTHW.shape[1]
    picked = torch.linspace(0, count - 1, min(frames, count)).round().long()
    frames_THWC: np.ndarray = to_uint8(clip_CTHW.detach().cpu()[:, picked]).permute(1, 2, 3, 0).contiguous().numpy()
    _, height, width, _ = frames_THWC.shape
    frame_width = max(1, round(width * frame_height / height))
    # Small frames keep their pixels visible; large ones are averaged down.
    how = Image.Resampling.NEAREST if frame_height >= height else Image.Resampling.LANCZOS
    image = Image.new("RGB", (len(picked) * (frame_width + GAP) - GAP, frame_height), PAPER)
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
