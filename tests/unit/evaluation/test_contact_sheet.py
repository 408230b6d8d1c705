from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from opensora.evaluation.contact_sheet import BAD, GOOD, LINE, MARGIN, PAPER, SheetRow, contact_sheet, strip


def plain(colour: tuple[float, float, float], frames: int = 6, height: int = 16, width: int = 24) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1, 1).expand(3, frames, height, width)


RED, BLUE = (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0)


def colours(image: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}


def hex_colour(text: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text[1:]))


def test_contact_sheet_sides_and_verdict_color(tmp_path: Path) -> None:
    hit = SheetRow(plain(RED), plain(BLUE), "a cat", "a cat", 0.1)
    miss = SheetRow(plain(BLUE), plain(RED, frames=2), "a cat", "a dog " * 200, 0.2)
    path = contact_sheet([hit, miss], tmp_path / "deep" / "contact.png", frame_height=32)
    image = np.asarray(Image.open(path).convert("RGB"))
    header = 2 * MARGIN + LINE
    top, bottom = np.split(image[header:], 2)
    half = image.shape[1] // 2
    assert (255, 0, 0) in colours(top[:, :half]) - colours(top[:, half:])
    assert (0, 0, 255) in colours(top[:, half:]) - colours(top[:, :half])
    assert (0, 0, 255) in colours(bottom[:, :half]) - colours(bottom[:, half:])
    assert hex_colour(GOOD) in colours(top) - colours(bottom)
    assert hex_colour(BAD) in colours(bottom) - colours(top)
    # Long captions are cut before the paper's edge.
    assert colours(image[:, -MARGIN:]) == {hex_colour(PAPER)}


def test_strip_shows_first_and_last_frame() -> None:
    clip = torch.linspace(-1, 1, 9).view(1, 9, 1, 1).expand(3, 9, 8, 8)
    image = np.asarray(strip(clip, 3, 16))
    assert image.shape == (16, 3 * 16 + 2 * 3, 3)
    assert [int(image[8, x, 0]) for x in (8, 27, 46)] == [0, 128, 255]
    assert strip(clip[:, :1], 3, 16).size == (16, 16)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        contact_sheet([], tmp_path / "contact.png")
