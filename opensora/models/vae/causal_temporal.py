"""Temporal resampling of the causal video autoencoder: T -> (T - 1) // 2 + 1 and T -> 2 (T - 1) + 1.

Shapes: B batch, C channels, T H W frames/rows/columns; every block takes and returns [B, C, T, H, W].
"""

import torch
from torch import Tensor, nn

from opensora.models.layers.attention import attend
from opensora.models.layers.conv import Conv3d
from opensora.models.vae.causal_blocks import CausalConv3d, ResnetBlock3D, group_norm, repeat_first_frame


def halve_frames(padded: Tensor) -> Tensor:
    """Means of three frames with stride two; avg_pool3d has no bf16 kernel on CPU."""
    last = padded.shape[2] - 2
    return (padded[:, :, 0:last:2] + padded[:, :, 1 : last + 1 : 2] + padded[:, :, 2 : last + 2 : 2]) / 3


def double_frames(x: Tensor) -> Tensor:
    """Keep the first frame; double the others by linear interpolation at half-frame centers."""
    if x.shape[2] == 1:
        return x
    first, rest = x.split([1, x.shape[2] - 1], dim=2)
    before = torch.cat([rest[:, :, :1], rest[:, :, :-1]], dim=2)
    after = torch.cat([rest[:, :, 1:], rest[:, :, -1:]], dim=2)
    doubled = torch.stack([torch.lerp(rest, before, 0.25), torch.lerp(rest, after, 0.25)], dim=3).flatten(2, 3)
    return torch.cat([first, doubled], dim=2)


class TimeDownsample2x(nn.Module):
    """Mean of neighboring frames; no weights."""

    def __init__(self, channels: int, groups: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return halve_frames(repeat_first_frame(x, 2))


class TimeUpsample2x(nn.Module):
    """Interpolation; no weights."""

    def __init__(self, channels: int, groups: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return double_frames(x)


class _Mixed(nn.Module):
    """sigmoid(mix_factor) * fixed branch + (1 - sigmoid(mix_factor)) * learned branch."""

    def __init__(self, mix_factor: float):
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([mix_factor]))

    def mix(self, fixed: Tensor, learned: Tensor) -> Tensor:
        share = self.mix_factor.sigmoid()
        return share * fixed + (1 - share) * learned  # lerp would refuse branches of two dtypes under autocast


class TimeDownsampleRes2x(_Mixed):
    """Mean of neighboring frames mixed with a strided convolution."""

    def __init__(self, channels: int, groups: int, mix_factor: float = 2.0):
        super().__init__(mix_factor)
        self.conv = Conv3d(channels, channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        padded = repeat_first_frame(x, 2)
        return self.mix(halve_frames(padded), self.conv(padded))


class TimeUpsampleRes2x(_Mixed):
    """Interpolation mixed with its convolution."""

    def __init__(self, channels: int, groups: int, mix_factor: float = 2.0):
        super().__init__(mix_factor)
        self.conv = CausalConv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled = double_frames(x)
        return self.mix(doubled, self.conv(doubled))


class TemporalAttnBlock(nn.Module):
    """Single-head self-attention along time at each pixel, past and future."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (Conv3d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        normed = self.norm(x)
        pixels = [f(normed).permute(0, 3, 4, 2, 1).reshape(b * h * w, 1, t, c) for f in (self.q, self.k, self.v)]
        out = attend(*pixels).view(b, h, w, t, c).permute(0, 4, 3, 1, 2)
        return x + self.proj_out(out)


class TimeDownsampleResAdv2x(_Mixed):
    """Mean of neighboring frames mixed with a residual block, attention along time and a strided convolution."""

    def __init__(self, channels: int, groups: int, mix_factor: float = 1.5):
        super().__init__(mix_factor)
        self.res = ResnetBlock3D(channels, channels, groups)
        self.attn = TemporalAttnBlock(channels, groups)
        self.conv = Conv3d(channels, channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        padded = repeat_first_frame(x, 2)
        return self.mix(halve_frames(padded), self.conv(self.attn(self.res(padded))))


class TimeUpsampleResAdv2x(_Mixed):
    """Interpolation mixed with a residual block, attention along time and its convolution."""

    def __init__(self, channels: int, groups: int, mix_factor: float = 1.5):
        super().__init__(mix_factor)
        self.res = ResnetBlock3D(channels, channels, groups)
        self.attn = TemporalAttnBlock(channels, groups)
        self.norm = group_norm(channels, groups)  # unused, but part of released weights
        self.conv = CausalConv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled = double_frames(x)
        return self.mix(doubled, self.conv(self.attn(self.res(doubled))))
