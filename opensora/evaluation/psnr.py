"""Peak signal-to-noise ratio: how far a reconstruction is from its source, in decibels."""

import torch
from torch import Tensor

CEILING = 100.0  # dB; equal clips would be infinite, and one of them would make every mean infinite
EQUAL = 1e-10  # mean squared error of frames below which they count as equal


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


def psnr_frames(a_BTCHW: Tensor, b_BTCHW: Tensor) -> Tensor:
    """PSNR of every frame in dB, float64 [B, T]; both in [0, 1]. Frames that are all but equal have CEILING.

    As Open-Sora-Plan reports it. Raises ValueError when shapes differ.
    """
    if a_BTCHW.shape != b_BTCHW.shape:
        raise ValueError(f"psnr: shapes {tuple(a_BTCHW.shape)} and {tuple(b_BTCHW.shape)} differ; compare equal sizes")
    error_BT = (a_BTCHW.double() - b_BTCHW.double()).square().flatten(2).mean(2)
    return torch.where(error_BT < EQUAL, CEILING, -10 * torch.log10(error_BT))
