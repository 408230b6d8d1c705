"""Frames to the size and range that models train on.

Layout: T frames, C colors, H W rows and columns.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from opensora.datasets.decode import Frames
from opensora.datasets.joint_padding import crop_to_stride, long_side_resize


def cover_size(height: int, width: int, target: Sequence[int]) -> tuple[int, int]:
    """The smallest size of the same aspect ratio that covers `target` (height, width), in pixels."""
    scale = max(target[0] / height, target[1] / width)
    return max(target[0], round(height * scale)), max(target[1], round(width * scale))


def resize_to_cover(image_HWC: Frames, target: Sequence[int]) -> Tensor:
    """One frame, resized (bilinear, antialiased) until it just covers `target`; uint8 [C, H, W]."""
    image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)
    height, width = image_HWC.shape[:2]
    size = cover_size(height, width, target)
    if size == (height, width):
        return image_CHW
    return functional.interpolate(image_CHW[None], size=size, mode="bilinear", antialias=True)[0]


def resize_inside(image_HWC: Frames, side: int) -> Tensor:
    """One frame, its longer side at most `side` and both multiples of 16; float32 [C, H, W] in [-1, 1].

    Source: Open-Sora-Plan 1.1, `multi_scale`.
    """
    image_TCHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None].to(torch.float32) / 255
    return crop_to_stride(long_side_resize(image_TCHW, side))[0] * 2 - 1


def crop(video_TCHW: Tensor, target: Sequence[int], place: Literal["center", "random"], rng: Generator) -> Tensor:
    """Cut out `target` (height, width), in the middle or where `rng` says; the same place for every frame."""
    spare = [have - want for have, want in zip(video_TCHW.shape[-2:], target)]
    if place == "center":
        top, left = (pixels // 2 for pixels in spare)
    else:
        top, left = (int(torch.randint(pixels + 1, (), generator=rng)) for pixels in spare)
    return video_TCHW[..., top : top + target[0], left : left + target[1]]


def to_range(video_uint8: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return video_uint8.to(torch.float32) / 127.5 - 1.0


def to_uint8(video: Tensor) -> Tensor:
    """The inverse of `to_range`; values outside [-1, 1] are clipped."""
    return ((video.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
