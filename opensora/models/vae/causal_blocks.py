"""Blocks of causal video autoencoders: Open-Sora-Plan 1.0 and 1.1, whose configs name them, and Open-Sora 1.2 and 1.3.

Shapes: B batch, C channels, T H W frames/rows/columns; every block takes and returns [B, C, T, H, W].
Causal: a convolution sees the current frame and earlier ones, so the first frame is coded as a still image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.layers.attention import attend
from opensora.models.layers.conv import Conv3d


def frames_to_batch(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def frames_from_batch(x: Tensor, batch: int) -> Tensor:
    """[B*T, C, H, W] -> [B, C, T, H, W]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


def repeat_first_frame(x: Tensor, times: int) -> Tensor:
    """Prepend the first frame `times` times."""
    if times == 0:
        return x
    first, rest = x.split([1, x.shape[2] - 1], dim=2)  # the backward of a slice would fill a whole tensor with zeros
    return torch.cat([first] * (times + 1) + [rest], dim=2)


def zero_frames_in_front(x: Tensor, times: int) -> Tensor:
    """Prepend `times` frames of zeros."""
    return F.pad(x, (0, 0, 0, 0, times, 0)) if times else x


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class CausalConv3d(nn.Module):
    """A convolution whose time padding is the first frame repeated in front. Key: `conv`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int, int] = 3,
        stride: int | tuple[int, int, int] = 1,
        padding: int = 0,
        bias: bool = True,
    ):
        super().__init__()
        size = (kernel,) * 3 if isinstance(kernel, int) else kernel
        self.front = size[0] - 1
        self.conv = Conv3d(in_channels, out_channels, size, stride, (0, padding, padding), bias=bias)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(repeat_first_frame(x, self.front))


class ZeroCausalConv3d(CausalConv3d):
    """CausalConv3d with zeros in front, as Open-Sora 1.2 and 1.3 pad."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(zero_frames_in_front(x, self.front))


class Conv2d(nn.Conv2d):
    """A plain convolution on each frame."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, padding: int = 0):
        super().__init__(in_channels, out_channels, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return frames_from_batch(super().forward(frames_to_batch(x)), len(x))


class ResnetBlock3D(nn.Module):
    """Norm, SiLU, convolution, twice. The norms' statistics run over all frames of a clip."""

    conv: type[CausalConv3d] | type[Conv2d] = CausalConv3d

    def __init__(self, in_channels: int, out_channels: int, groups: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = self.conv(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = self.conv(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = self.conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class ResnetBlock2D(ResnetBlock3D):
    """ResnetBlock3D on single frames: plain convolutions, and statistics per frame."""

    conv = Conv2d

    def forward(self, x: Tensor) -> Tensor:
        stills = frames_to_batch(x).unsqueeze(2)  # clips of one frame, so the norms do not mix frames
        return frames_from_batch(super().forward(stills).squeeze(2), len(x))


class AttnBlock3DFix(nn.Module):
    """Single-head self-attention over the pixels of each frame."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.q = CausalConv3d(channels, channels, 1)
        self.k = CausalConv3d(channels, channels, 1)
        self.v = CausalConv3d(channels, channels, 1)
        self.proj_out = CausalConv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.proj_out(self.mix(self.q(h), self.k(h), self.v(h)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frames = [frames_to_batch(a).flatten(2).transpose(1, 2).unsqueeze(1) for a in (q, k, v)]  # [BT, 1, HW, C]
        out = attend(*frames).squeeze(1).transpose(1, 2)
        return frames_from_batch(out.unflatten(2, q.shape[3:]), len(q))


class AttnBlock3D(AttnBlock3DFix):
    """The block of the 1.0.0 weights, which mixes frames with channels: it never moves T ahead of C."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, c, t, h, w = q.shape
        frames = [a.reshape(b * t, c, h * w).transpose(1, 2).unsqueeze(1) for a in (q, k, v)]
        return attend(*frames).squeeze(1).transpose(1, 2).reshape(b, c, t, h, w)


class Downsample(nn.Module):
    """Halves rows and columns, frame by frame; padded right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class SpatialDownsample2x(nn.Module):
    """Downsample with the key names of a causal convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (1, 3, 3), (1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class SpatialUpsample2x(nn.Module):
    """Doubles rows and columns by repetition, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (1, 3, 3), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        frames = F.interpolate(frames_to_batch(x), scale_factor=2.0, mode="nearest")
        return self.conv(frames_from_batch(frames, len(x)))
