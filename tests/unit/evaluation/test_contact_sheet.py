from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from opensora.evaluation.contact_sheet import (
    AMPLIFY,
    BAD,
    GAP,
    GOOD,
    LINE,
    MARGIN,
    PAPER,
    SheetRow,
    contact_sheet,
    difference_strip,
    strip,
)


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
    header = 2 * MARGIN + 2 * LINE
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


def test_differences_are_amplified_and_lie_below_the_gaps(tmp_path: Path) -> None:
    """The left half stands still; the right half becomes brighter by 3 bytes a frame, which AMPLIFY makes visible."""
    frames_T = 100 + 3 * torch.arange(5.0)
    clip = torch.full((3, 5, 8, 8), 100.0)
    clip[..., 4:] = frames_T.view(1, 5, 1, 1)
    clip = clip / 127.5 - 1
    below = np.asarray(difference_strip(clip, 3, 8))  # of frames 0, 2, 4: 6 bytes apart
    assert below.shape == (8, 2 * 8 + GAP, 3)
    assert {int(value) for value in below[:, :4].flat} == {0}
    assert {int(value) for value in below[:, 4:8].flat} == {6 * AMPLIFY}
    steep = clip[:, :1] + 10 * (clip - clip[:, :1])  # 120 bytes apart
    assert {int(value) for value in np.asarray(difference_strip(steep, 2, 8))[:, 4:].flat} == {255}
    assert difference_strip(clip[:, :1], 3, 8) is None

    row = SheetRow(clip, clip[:, :1], "a", "a", 0.1)
    image = np.asarray(Image.open(contact_sheet([row], tmp_path / "a.png", frames=3, frame_height=8)).convert("RGB"))
    top = 2 * MARGIN + 2 * LINE + 8 + GAP
    left = MARGIN + (8 + GAP) // 2
    assert np.array_equal(image[top : top + 8, left : left + below.shape[1]], below)


def test_the_motion_of_a_clip_stands_under_it(tmp_path: Path) -> None:
    """In the color of the verdict: from half to twice as much as the shot is good."""
    pictures = {}
    for motion in (None, 0.49, 0.5, 2.0, 2.1):
        row = SheetRow(plain(RED), plain(RED), "a", "another", 0.1, motion)
        sheet = Image.open(contact_sheet([row], tmp_path / "a.png")).convert("RGB")
        pictures[motion] = colours(np.asarray(sheet)[:, : sheet.width // 2])
    good = {motion: hex_colour(GOOD) in shown for motion, shown in pictures.items()}
    bad = {motion: hex_colour(BAD) in shown for motion, shown in pictures.items()}
    assert good == {None: False, 0.49: False, 0.5: True, 2.0: True, 2.1: False}
    assert bad == {None: False, 0.49: True, 0.5: False, 2.0: False, 2.1: True}


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        contact_sheet([], tmp_path / "contact.png")
