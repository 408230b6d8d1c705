"""Structural similarity of two clips, frame by frame.

Layout: B clips, T frames, C colors, H W rows and columns, all in [0, 1].
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TAPS, SIGMA = 11, 1.5  # of the Gaussian window
C1, C2 = 0.01**2, 0.03**2


def ssim_frames(a_BTCHW: Tensor, b_BTCHW: Tensor) -> Tensor:
    """SSIM of every frame, float64 [B, T]: the mean over colors and over all places where the window fits.

    Raises ValueError when shapes differ or frames are smaller than the window. Source: Wang et al. 2004, eq. 13.
    """
    _check_shapes("ssim", a_BTCHW, b_BTCHW)
    if min(a_BTCHW.shape[-2:]) < TAPS:
        raise ValueError(f"ssim: frames of {tuple(a_BTCHW.shape[-2:])}; at least {TAPS} rows and columns are needed")
    batch, frames, colors = a_BTCHW.shape[:3]
    a, b = (x.double().flatten(0, 2)[:, None] for x in (a_BTCHW, b_BTCHW))
    mean_a, mean_b = _window(a), _window(b)
    var_a, var_b = _window(a * a) - mean_a**2, _window(b * b) - mean_b**2
    cov = _window(a * b) - mean_a * mean_b
    like = (2 * mean_a * mean_b + C1) * (2 * cov + C2)
    like = like / ((mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2))
    return like.mean((1, 2, 3)).view(batch, frames, colors).mean(2)


class OverClips(NamedTuple):
    """Statistics over a set of clips, frame by frame."""

    mean_T: Tensor
    std_T: Tensor  # of the population


def over_clips(values_BT: Tensor) -> OverClips:
    """Mean and spread over the clips; the mean of `mean_T` is the usual single number."""
    return OverClips(values_BT.mean(0), values_BT.std(0, correction=0))


def _window(x_N1HW: Tensor) -> Tensor:
    """Gaussian mean around every place where the window fits."""
    offsets = torch.arange(TAPS, dtype=x_N1HW.dtype, device=x_N1HW.device) - TAPS // 2
    taps = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    taps = taps / taps.sum()
    return functional.conv2d(functional.conv2d(x_N1HW, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))


def _check_shapes(what: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{what}: shapes {tuple(a.shape)} and {tuple(b.shape)} differ; compare equal sizes")
