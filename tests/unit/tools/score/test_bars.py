"""Bars and borders are measured to the row."""

import numpy as np
import pytest

from opensora.datasets.decode import Frames
from tools.score.bars import Bars, find_bars, gray_frame


def moving_picture(height: int = 60, width: int = 90, frames: int = 4) -> Frames:
    """[T, H, W] of noise about gray 130, other in each frame."""
    rng = np.random.default_rng(0)
    return rng.integers(60, 200, (frames, height, width)).astype(np.uint8)


def padded(picture: Frames, top: int, bottom: int, left: int, right: int, value: int) -> Frames:
    noise = np.random.default_rng(1).integers(-3, 4, (len(picture), 120, 150))
    frame = np.clip(value + noise, 0, 255).astype(np.uint8)[:, : 60 + top + bottom, : 90 + left + right]
    frame[:, top : top + 60, left : left + 90] = picture
    return frame


@pytest.mark.parametrize("depths", [(20, 20, 0, 0), (0, 0, 15, 30), (12, 7, 5, 9), (9, 0, 0, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("value", [0, 16])
def test_black_bars_are_measured(depths: tuple[int, int, int, int], value: int) -> None:
    bars = find_bars(padded(moving_picture(), *depths, value=value))
    assert bars.depths == depths
    area = (60 + depths[0] + depths[1]) * (90 + depths[2] + depths[3])
    assert bars.only(black=True).share(60 + depths[0] + depths[1], 90 + depths[2] + depths[3]) == pytest.approx(
        1 - 60 * 90 / area
    )
    assert bars.only(black=False) == Bars(values=bars.values)


@pytest.mark.parametrize("value", [90, 255])
def test_a_border_is_on_two_opposite_sides(value: int) -> None:
    assert find_bars(padded(moving_picture(), 12, 7, 0, 0, value)).only(black=False).depths == (12, 7, 0, 0)
    assert find_bars(padded(moving_picture(), 12, 0, 0, 0, value)).only(black=False).depths == (0, 0, 0, 0)
    assert find_bars(padded(moving_picture(), 12, 7, 4, 4, value)).only(black=True).depths == (0, 0, 0, 0)


def test_subtitles_do_not_hide_a_bar() -> None:
    frames = padded(moving_picture(), 20, 20, 0, 0, 0)
    frames[1:3, 86:92, 30:60:2] = 230
    assert find_bars(frames).depths == (20, 20, 0, 0)


def test_a_dark_sky_without_an_edge_is_no_bar() -> None:
    picture = moving_picture()
    picture[:, :30] = 4
    picture[:, 20:30, 40:50] = 180  # the top of a tower
    assert find_bars(picture[:, :, :]).depths == (30, 0, 0, 0)  # a straight edge all along is one
    lights = np.full((4, 60, 90), 4, np.uint8)
    lights[:, 40:][np.random.default_rng(0).random((4, 20, 90)) < 0.1] = 200
    assert find_bars(lights).depths == (0, 0, 0, 0)


def test_flat_frames_have_no_bars() -> None:
    for value in (0, 128, 255):
        assert find_bars(np.full((3, 40, 60), value, np.uint8)) == Bars()


def test_cropping_leaves_the_picture() -> None:
    picture = moving_picture()
    frames = padded(picture, 12, 7, 0, 9, 0)
    bars = find_bars(frames)
    assert np.array_equal(bars.crop(frames), picture)
    assert np.array_equal(bars.crop(frames, margin=1), picture[:, 1:-1, :-1])
    assert np.array_equal(Bars(30, 30).crop(picture[0]), picture[0])


def test_gray_is_the_luma_of_the_colors() -> None:
    assert gray_frame(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8)).tolist() == [
        [76, 150, 29, 9]
    ]
