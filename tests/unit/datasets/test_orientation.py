"""The eight orientations of pictures and videos, as Pillow and ffmpeg show them."""

import itertools

import numpy as np
import pytest
from PIL import Image, ImageOps

from opensora.datasets.orientation import Orientation
from tests.support.media_files import corner_names, corners

# a, b, c, d of the display matrix -> colors from top left to bottom right, as ffmpeg shows them
MATRICES = {
    (1, 0, 0, 1): "rgbw",
    (-1, 0, 0, 1): "grwb",
    (1, 0, 0, -1): "bwrg",
    (-1, 0, 0, -1): "wbgr",
    (0, 1, -1, 0): "brwg",
    (0, -1, 1, 0): "gwrb",
    (0, 1, 1, 0): "rbgw",
    (0, -1, -1, 0): "wgbr",
}


@pytest.mark.parametrize(("matrix", "shown"), MATRICES.items())
def test_display_matrices(matrix: tuple[int, int, int, int], shown: str) -> None:
    a, b, c, d = (65536 * value for value in matrix)
    orientation = Orientation.of_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
    picture = orientation.apply(corners(32, 48))
    assert corner_names(picture) == shown
    assert picture.shape[:2] == orientation.size(32, 48) == ((48, 32) if matrix[0] == 0 else (32, 48))


@pytest.mark.parametrize("value", range(1, 9))
def test_exif_as_pillow_has_it(value: int) -> None:
    stored = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(stored)
    image.getexif()[274] = value
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(Orientation.of_exif(value).apply(stored), expected)


def test_odd_angles_become_the_nearest_quarter_turn() -> None:
    for degrees, quarter in itertools.product((-20, 7, 44), range(4)):
        angle = np.deg2rad(degrees + 90 * quarter)
        cos, sin = (int(65536 * value) for value in (np.cos(angle), np.sin(angle)))
        shown = corner_names(Orientation.of_matrix((cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)).apply(corners()))
        assert shown == ("rgbw", "brwg", "wbgr", "gwrb")[quarter]


@pytest.mark.parametrize("value", [None, 0, 9, "6", 6.0])
def test_exif_that_says_nothing(value: object) -> None:
    assert Orientation.of_exif(value) == Orientation()
    assert Orientation.of_matrix((0,) * 9) == Orientation()
