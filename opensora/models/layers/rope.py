"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

Shapes: N positions along the attended axis, d width of a head (or of the part that is rotated).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from opensora.models.shape_checks import exact_div


def rope_frequencies(width: int, base: float = 10000.0) -> Tensor:
    """float32 [width / 2]: base^(-2k / width)."""
    exact_div("rotary embedding: width", width, 2)
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)  # bit-equal to released weights


class RotaryEmbedding(nn.Module):
    """Holds the frequencies as an untrained parameter: released weights contain and use them."""

    def __init__(self, width: int):
        super().__init__()
        self.freqs = nn.Parameter(rope_frequencies(width), requires_grad=False)

    def angles(self, positions_N: Tensor) -> Tensor:
        """[N, width / 2], in the dtype of the frequencies."""
        return positions_N.to(self.freqs)[:, None] * self.freqs


def pair_rotation(angles_Nk: Tensor) -> Callable[[Tensor], Tensor]:
    """`rotate_pairs` by fixed angles, with sines and cosines computed once."""
    cos, sin = angles_Nk.cos().repeat_interleave(2, dim=-1), angles_Nk.sin().repeat_interleave(2, dim=-1)

    def rotate(x: Tensor) -> Tensor:
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
        return x * cos + turned * sin

    return rotate


def rotate_pairs(x: Tensor, angles_Nk: Tensor) -> Tensor:
    """Rotate neighbors (2k, 2k + 1) of the last axis of x [..., N, 2k] by the angles [..., N, k]."""
    return pair_rotation(angles_Nk)(x)


def half_rotation(angles_Nk: Tensor) -> Callable[[Tensor], Tensor]:
    """`rotate_halves` by fixed angles, with sines and cosines computed once."""
    cos, sin = torch.cat([angles_Nk.cos()] * 2, dim=-1), torch.cat([angles_Nk.sin()] * 2, dim=-1)

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    return rotate


def rotate_halves(x: Tensor, angles_Nk: Tensor) -> Tensor:
    """Rotate entry k against entry k + d/2 of x [..., N, d] by the angles [..., N, d / 2]."""
    return half_rotation(angles_Nk)(x)
