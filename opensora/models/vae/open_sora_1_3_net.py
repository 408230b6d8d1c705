"""Encoder and decoder of Open-Sora 1.3's causal video autoencoder. Key names follow Open-Sora 1.3.

Shapes: B batch, C channels, T H W frames/rows/columns, lower case the latent ones. Level 0 is the finest. Causal as in
`causal_blocks.py`, with zeros in front of the first frame.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.layers.conv import Conv3d
from opensora.models.vae import causal_blocks as blocks
from opensora.models.vae.causal_net import MidBlock, UNetLevel


class ResnetBlock(blocks.ResnetBlock3D):
    conv = blocks.ZeroCausalConv3d


class CausalAttention(blocks.AttnBlock3DFix):
    """Single-head causal self-attention over all pixels of all frames.

    The order is frame, row, column, so within a frame a pixel does not attend to those below it: weights were trained so.
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (a.flatten(2).transpose(1, 2).unsqueeze(1) for a in (q, k, v))  # [B, 1, THW, C]
        # not `attend` with a mask: one of THW x THW entries would be larger than all activations
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return out.squeeze(1).transpose(1, 2).unflatten(2, q.shape[2:])


class Downsample3D(nn.Module):
    """Halves frames, rows and columns."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = blocks.ZeroCausalConv3d(channels, channels, 3, (2, 2, 2), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample2D(nn.Module):
    """Doubles rows and columns of each frame by repetition, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = blocks.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))


class RefineBlock(nn.Module):
    """Convolution, norm, SiLU, convolution, norm, the input added, SiLU."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.conv1 = blocks.ZeroCausalConv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-5)
        self.conv2 = blocks.ZeroCausalConv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(x + self.norm2(self.conv2(h)))


class Upsample3D(nn.Module):
    """Doubles frames, rows and columns by repetition, then adds a learned residual."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.conv3d = RefineBlock(channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return doubled + self.conv3d(doubled)


def mid_block(channels: int, groups: int) -> MidBlock:
    return MidBlock(
        ResnetBlock(channels, channels, groups),
        CausalAttention(channels, groups),
        ResnetBlock(channels, channels, groups),
    )


def unet_level(before: int, width: int, resnets: int, groups: int, **resample: nn.Module) -> UNetLevel:
    chain = [ResnetBlock(a, b, groups) for a, b in pairwise([before] + [width] * resnets)]
    return UNetLevel(chain, [], resample)


class Encoder(nn.Module):
    """[B, 3, T, H, W] -> [B, out_channels, t, h, w]; level 0 is the finest."""

    def __init__(self, out_channels: int, widths: Sequence[int], resnets: int, in_time: Sequence[int], groups: int):
        super().__init__()
        self.conv_in = blocks.ZeroCausalConv3d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            kind = Downsample3D if i in in_time else blocks.Downsample
            resample = {"downsample": kind(width)} if i < len(widths) - 1 else {}
            self.down.append(unet_level(widths[max(i - 1, 0)], width, resnets, groups, **resample))
        self.mid = mid_block(widths[-1], groups)
        self.norm_out = blocks.group_norm(widths[-1], groups)
        self.conv_out = blocks.ZeroCausalConv3d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """[B, z_channels, t, h, w] -> [B, 3, T, H, W]; levels are kept finest first and run from the coarsest."""

    def __init__(self, z_channels: int, widths: Sequence[int], resnets: int, in_time: Sequence[int], groups: int):
        super().__init__()
        self.conv_in = blocks.ZeroCausalConv3d(z_channels, widths[-1], 3, padding=1)
        self.mid = mid_block(widths[-1], groups)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            resample: dict[str, nn.Module] = {}
            if i:
                resample["upsample"] = Upsample3D(width, groups) if i in in_time else Upsample2D(width)
            self.up.append(unet_level(widths[min(i + 1, len(widths) - 1)], width, resnets, groups, **resample))
        self.norm_out = blocks.group_norm(widths[0], groups)
        # causal like the others, but without `.conv` in its keys
        self.conv_out = Conv3d(widths[0], 3, 3, padding=(0, 1, 1))
        self.surplus = 2 ** len(in_time) - 1  # the first latent frame stands for one frame and becomes this many more

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        x = F.silu(self.norm_out(x))
        return self.conv_out(blocks.zero_frames_in_front(x, 2))[:, :, self.surplus :]
