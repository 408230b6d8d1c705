"""Peak signal-to-noise ratio: how far a reconstruction is from its source, in decibels."""

import torch
from torch import Tensor

CEILING = 100.0  # dB; equal clips would be infinite, and one of them would make every mean infinite


def psnr(a_BCTHW: Tensor, b_BCTHW: Tensor) -> Tensor:
    """PSNR per clip in dB, float32 [B], at most CEILING; both in [-1, 1], what lies outside is clipped.

    The peak is 2, the width of [-1, 1]: psnr = 10 log10(4 / mean squared error), the mean taken over the whole clip.
    Equal to the PSNR of the same clips in [0, 255] but for rounding to bytes. Raises ValueError when shapes differ.
    """
    if a_BCTHW.shape != b_BCTHW.shape:
        raise ValueError(f"psnr: shapes {tuple(a_BCTHW.shape)} and {tuple(b_BCTHW.shape)} differ; compare equal sizes")
    difference = a_BCTHW.double().clamp(-1, 1) - b_BCTHW.double().clamp(-1, 1)
    error_B = difference.square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error_B)).clamp(max=CEILING).float()
