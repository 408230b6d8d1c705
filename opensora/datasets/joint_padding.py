"""Clips joined with images, as Open-Sora-Plan trains on them: sizes, frame choice, and one batch with masks.

A sample is one clip and n images, each with its own caption. In a batch the clip is padded to one size and the images
follow its frames; a mask over the latents says what is not padding. `joint_dataset.py` makes such samples of two data sets.
Layout: B samples, C colors, T frames, H W rows and columns; L text tokens. Float videos lie in [0, 1] before `* 2 - 1`.
Source: Open-Sora-Plan 1.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def center_crop(video: Tensor, height: int, width: int) -> Tensor:
    """Cut [..., H, W] in the middle; ValueError when it is smaller than that."""
    have = video.shape[-2:]
    if have[0] < height or have[1] < width:
        raise ValueError(f"center_crop: frames of {tuple(have)} for {(height, width)} pixels; resize them first")
    top, left = (round((pixels - want) / 2) for pixels, want in zip(have, (height, width), strict=True))
    return video[..., top : top + height, left : left + width]


def center_crop_resize(video_TCHW: Tensor, size: int) -> Tensor:
    """The largest square in the middle, resized to size x size."""
    side = min(video_TCHW.shape[-2:])
    return _resize(center_crop(video_TCHW, side, side), size, size)


def long_side_resize(video_TCHW: Tensor, size: int) -> Tensor:
    """The longer side becomes `size`, the other follows (cut down to whole pixels); smaller frames stay as they are."""
    height, width = video_TCHW.shape[-2:]
    longer = max(height, width)
    if longer <= size:
        return video_TCHW
    return _resize(video_TCHW, height * size // longer, width * size // longer)


def crop_to_stride(video: Tensor, stride: int = 16) -> Tensor:
    """The top left of [..., H, W], whose sides are multiples of `stride`."""
    height, width = video.shape[-2:]
    return video[..., : height // stride * stride, : width // stride * stride]


def _resize(video_TCHW: Tensor, height: int, width: int) -> Tensor:
    # Corners aligned and antialiased, an unusual pair: the released models were trained on it.
    return functional.interpolate(video_TCHW, size=(height, width), mode="bilinear", align_corners=True, antialias=True)


def select_frames(start: int, end: int, count: int) -> list[int]:
    """`count` frame indices from start to end - 1, evenly spread and rounded down."""
    return np.linspace(start, end - 1, count, dtype=int).tolist()


def image_group(row: int, images: int, count: int) -> range:
    """Indices of the images that go with clip `row`: groups of `count` in order, begun again when they are used up.

    The last group is never used, as in Open-Sora-Plan; without a whole group to spare ValueError.
    """
    groups = -(-images // count) - 1
    if groups < 1:
        raise ValueError(f"image_group: {images} images for groups of {count}; more than one group is needed")
    first = row % groups * count
    return range(first, first + count)


@dataclass(frozen=True)
class JointSample:
    """One clip and its images, normalized."""

    video_CTHW: Tensor
    images_C1HW: Sequence[Tensor]
    input_ids: Tensor  # [1 + n, L]: the clip's caption, then the images'
    text_mask: Tensor  # [1 + n, L], 1 = token counts


@dataclass(frozen=True)
class JointBatch:
    """Clips of one size with their images behind them."""

    x_BCTHW: Tensor  # T frames of the clip, then n images; padding is 0
    mask_BTHW: Tensor  # float32 over latents, 1 = not padding
    input_ids: Tensor  # [B, 1 + n, L]
    text_mask: Tensor  # [B, 1 + n, L]


def collate(
    samples: Sequence[JointSample],
    *,
    num_frames: int,
    max_image_size: int,
    ae_stride: int = 8,
    ae_stride_t: int = 4,
    patch_size: int = 2,
) -> JointBatch:
    """Pad clips and images to the size that num_frames and max_image_size ask for, and stack them.

    Sides become multiples of ae_stride * patch_size, frames after the first a multiple of ae_stride_t. Raises ValueError
    when a clip or image is larger than that.
    """
    side = _up(max_image_size, ae_stride * patch_size)
    frames = 1 + _up(num_frames - 1, ae_stride_t)
    stride = (ae_stride_t, ae_stride)
    joined = [join(sample.video_CTHW, sample.images_C1HW, frames, (side, side), stride) for sample in samples]
    return JointBatch(
        torch.stack([video for video, _ in joined]),
        torch.stack([mask for _, mask in joined]),
        torch.stack([sample.input_ids for sample in samples]),
        torch.stack([sample.text_mask for sample in samples]),
    )


def join(
    video_CTHW: Tensor, images_C1HW: Sequence[Tensor], frames: int, size: tuple[int, int], stride: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """A clip padded to `frames` and `size` (rows, columns) with the padded images behind it, and the latents' mask.

    stride: frames, and rows or columns, of one latent. ValueError when something is larger than that.
    """
    parts = [_pad(video_CTHW, frames, size, stride), *(_pad(image, 1, size, stride) for image in images_C1HW)]
    return torch.cat([video for video, _ in parts], dim=1), torch.cat([mask for _, mask in parts])


def _pad(video_CTHW: Tensor, frames: int, size: tuple[int, int], stride: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The video with zeros behind, below and to the right, and the mask [t, h, w] of its latents."""
    _, t, h, w = video_CTHW.shape
    if t > frames or h > size[0] or w > size[1]:
        raise ValueError(f"collate: {(t, h, w)} (frames, rows, columns) do not fit {(frames, *size)}; resize first")
    time, space = stride
    mask_THW = torch.ones(_latent_frames(t, time), -(-h // space), -(-w // space))
    full = (_latent_frames(frames, time), size[0] // space, size[1] // space)
    return _zeros_after(video_CTHW, (frames, *size)), _zeros_after(mask_THW, full)


def _zeros_after(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad the last three axes at their ends."""
    missing = [want - have for want, have in zip(size, x.shape[-3:], strict=True)]
    return functional.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))


def _latent_frames(frames: int, stride: int) -> int:
    return -(-(frames - 1) // stride) + 1


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
