"""Latents to patches and back.

Shapes: B batch, C channels, T H W the token grid; a patch is (pt, ph, pw) latent cells.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.layers.conv import Conv3d


def at_least_float32(x: Tensor) -> Tensor:
    """float32 instead of narrower floats; float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class PatchEmbed3D(nn.Module):
    """[B, C, T*pt, H*ph, W*pw] -> [B, T, H, W, D]; sizes that do not divide are padded with zeros at the end."""

    def __init__(self, patch_size: Sequence[int], in_channels: int, hidden_size: int):
        super().__init__()
        pt, ph, pw = patch_size
        self.patch_size = (pt, ph, pw)
        self.proj = Conv3d(in_channels, hidden_size, kernel_size=self.patch_size, stride=self.patch_size)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        missing = [-size % patch for size, patch in zip(x_BCTHW.shape[2:], self.patch_size, strict=True)]
        if any(missing):
            x_BCTHW = F.pad(x_BCTHW, (0, missing[2], 0, missing[1], 0, missing[0]))
        return self.proj(x_BCTHW).permute(0, 2, 3, 4, 1)


def unpatchify(x_BTHWF: Tensor, patch_size: Sequence[int], channels: int) -> Tensor:
    """[B, T, H, W, pt*ph*pw*C] -> [B, C, T*pt, H*ph, W*pw]; within a patch the channel runs fastest."""
    b, t, h, w, _ = x_BTHWF.shape
    pt, ph, pw = patch_size
    x = x_BTHWF.reshape(b, t, h, w, pt, ph, pw, channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(b, channels, t * pt, h * ph, w * pw)
