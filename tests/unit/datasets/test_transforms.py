import numpy as np
import torch

from opensora.datasets.transforms import cover_size, crop, resize_to_cover, to_range, to_uint8
from opensora.rng import generator


def test_cover_size_keeps_the_aspect_ratio() -> None:
    assert cover_size(272, 640, (64, 64)) == (64, 151)
    assert cover_size(640, 272, (64, 64)) == (151, 64)
    assert cover_size(10, 10, (64, 32)) == (64, 64)
    assert cover_size(101, 100, (33, 33)) == (33, 33)


def test_resize_averages_when_it_shrinks() -> None:
    """A fine checkerboard becomes even gray; without antialiasing it would become black, white or stripes."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = resize_to_cover(np.repeat(board[..., None], 3, axis=2), (8, 8))
    assert small.shape == (3, 8, 8)
    assert small.dtype == torch.uint8
    assert (small.float() - 127.5).abs().max() < 3


def test_resize_keeps_colors_in_place() -> None:
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 20:, 2] = 200  # the right half is blue
    small = resize_to_cover(picture, (10, 20))
    assert small[2, :, 12:].min() > 190
    assert small[2, :, :8].max() < 10
    assert small[:2].max() == 0


def test_crop_in_the_middle_and_by_draw() -> None:
    video = torch.arange(10 * 20).reshape(1, 1, 10, 20)
    middle = crop(video, (4, 6), "center", generator(0, "crop"))
    assert torch.equal(middle, video[..., 3:7, 7:13])
    corners = {int(crop(video, (4, 6), "random", generator(0, "crop", i))[0, 0, 0, 0]) for i in range(40)}
    assert len(corners) > 20
    again = crop(video, (4, 6), "random", generator(0, "crop", 3))
    assert torch.equal(again, crop(video, (4, 6), "random", generator(0, "crop", 3)))


def test_range_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    values = to_range(levels)
    assert values.dtype == torch.float32
    assert (float(values[0]), float(values[-1])) == (-1.0, 1.0)
    assert torch.equal(to_uint8(values), levels)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
