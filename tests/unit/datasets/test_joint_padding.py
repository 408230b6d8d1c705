import pytest
import torch

from opensora.datasets.joint_padding import (
    JointSample,
    center_crop,
    center_crop_resize,
    collate,
    crop_to_stride,
    image_group,
    long_side_resize,
    select_frames,
)


def ramp(height: int, width: int) -> torch.Tensor:
    """[1, 1, H, W]: every pixel holds its column."""
    return torch.arange(width).float().expand(1, 1, height, width)


def test_crops_and_sizes() -> None:
    assert center_crop(ramp(4, 10), 2, 4)[0, 0, 0].tolist() == [3, 4, 5, 6]
    square = center_crop_resize(ramp(8, 12), 4)
    assert square.shape == (1, 1, 4, 4)
    assert square[0, 0, 0, [0, -1]].tolist() == pytest.approx(
        [3.0, 8.0], abs=1
    )  # columns 2 to 9, ends averaged inwards
    assert long_side_resize(ramp(10, 25), 12).shape[-2:] == (4, 12)
    assert long_side_resize(ramp(25, 10), 12).shape[-2:] == (12, 4)
    small = ramp(10, 12)
    assert long_side_resize(small, 12) is small
    assert crop_to_stride(ramp(33, 47), 16).shape[-2:] == (32, 32)
    assert crop_to_stride(ramp(33, 47), 16)[0, 0, 0, 0] == 0
    with pytest.raises(ValueError, match=r"\(4, 10\).*\(5, 5\)"):
        center_crop(ramp(4, 10), 5, 5)


def test_frames_and_pictures() -> None:
    assert select_frames(3, 13, 4) == [3, 6, 9, 12]
    assert select_frames(5, 8, 3) == [5, 6, 7]
    assert [list(image_group(row, 8, 3)) for row in range(4)] == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert [list(image_group(row, 9, 3)) for row in range(3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [0, 1, 2],
    ]  # the last is dropped
    with pytest.raises(ValueError, match="3 images for groups of 3"):
        image_group(0, 3, 3)


def sample(frames: int, height: int, width: int, images: int = 1) -> JointSample:
    ids = torch.ones(1 + images, 2, dtype=torch.long)
    return JointSample(torch.ones(3, frames, height, width), [torch.ones(3, 1, 16, 32)] * images, ids, ids)


def test_a_batch_is_padded_and_its_mask_counts_latents() -> None:
    """5 frames of 16x24 in a batch of 9 frames of up to 30 pixels: sides become 32, latents 3 x 4 x 4."""
    batch = collate([sample(5, 16, 24), sample(9, 30, 32)], num_frames=8, max_image_size=30)
    assert batch.x_BCTHW.shape == (2, 3, 9 + 1, 32, 32)
    assert batch.mask_BTHW.shape == (2, 3 + 1, 4, 4)
    assert batch.x_BCTHW[0, :, :9].sum() == 3 * 5 * 16 * 24
    assert batch.x_BCTHW[0, :, 9].sum() == 3 * 16 * 32
    assert batch.mask_BTHW.sum((2, 3)).tolist() == [[2 * 3, 2 * 3, 0, 2 * 4], [16, 16, 16, 2 * 4]]
    assert batch.mask_BTHW[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"\(10, 16, 16\).*\(9, 32, 32\)"):
        collate([sample(10, 16, 16)], num_frames=9, max_image_size=32)
