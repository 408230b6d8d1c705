"""Encoder and decoder of the causal video autoencoder, assembled from blocks by name.

Shapes: B batch, C channels, T H W frames/rows/columns. Level 0 is the finest. Key names follow Open-Sora-Plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.vae import causal_blocks as blocks
from opensora.models.vae import causal_temporal as time
from opensora.models.vae import shuffle_blocks as shuffle

CONVOLUTIONS = {"Conv2d": blocks.Conv2d, "CausalConv3d": blocks.CausalConv3d}
RESNETS = {"ResnetBlock2D": blocks.ResnetBlock2D, "ResnetBlock3D": blocks.ResnetBlock3D}
ATTENTIONS = {"AttnBlock3DFix": blocks.AttnBlock3DFix, "AttnBlock3D": blocks.AttnBlock3D}
SPATIAL_DOWN = {
    "Downsample": blocks.Downsample,
    "SpatialDownsample2x": blocks.SpatialDownsample2x,
    "SpatialUnshuffle2x": shuffle.SpatialUnshuffle2x,
}
SPATIAL_UP = {"SpatialUpsample2x": blocks.SpatialUpsample2x, "SpatialShuffle2x": shuffle.SpatialShuffle2x}
TIME_DOWN = {
    "TimeDownsample2x": time.TimeDownsample2x,
    "TimeDownsampleRes2x": time.TimeDownsampleRes2x,
    "TimeDownsampleResAdv2x": time.TimeDownsampleResAdv2x,
    "TimeUnshuffle2x": shuffle.TimeUnshuffle2x,
}
TIME_UP = {
    "TimeUpsample2x": time.TimeUpsample2x,
    "TimeUpsampleRes2x": time.TimeUpsampleRes2x,
    "TimeUpsampleResAdv2x": time.TimeUpsampleResAdv2x,
    "TimeShuffle2x": shuffle.TimeShuffle2x,
}


Block = TypeVar("Block")


def lookup_block(known: Mapping[str, Block], key: str, name: str) -> Block:
    """The block class called `name`; key: the argument that names it, for the ConfigError."""
    if name not in known:
        raise ConfigError(f"CausalVAEModel: {key}: found {name!r}; allowed: {', '.join(map(repr, sorted(known)))}")
    return known[name]


@dataclass(frozen=True)
class HalfConfig:
    """The layers of the encoder or the decoder. Lists have one entry per level, the finest first; "" means no block."""

    half: str  # "encoder" or "decoder", for messages
    widths: Sequence[int]
    z_channels: int  # channels on the latent side
    resnets_per_level: int
    conv_in: str
    conv_out: str
    attention: str
    resnet_blocks: Sequence[str]
    spatial: Sequence[str]
    temporal: Sequence[str]
    mid_resnet: str
    attn_resolutions: Sequence[int]  # levels of this many pixels per side get attention ...
    resolution: int  # ... when the clip has this many
    dropout: float
    groups: int  # of every GroupNorm
    norm_out: bool  # whether a norm and SiLU come before the last convolution

    def __post_init__(self) -> None:
        for key in ("resnet_blocks", "spatial", "temporal"):
            if len(getattr(self, key)) != len(self.widths):
                raise ConfigError(
                    f"CausalVAEModel: {self.half} {key}: {len(getattr(self, key))} entries; hidden_size_mult has "
                    f"{len(self.widths)}, so give as many"
                )
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(
                    f"CausalVAEModel: {width} channels (hidden_size times hidden_size_mult) do not fall into "
                    f"norm_groups={self.groups} equal groups; choose norm_groups that divides every width"
                )

    def make_conv(self, key: str, in_channels: int, out_channels: int) -> nn.Module:
        return lookup_block(CONVOLUTIONS, f"{self.half}_{key}", getattr(self, key))(
            in_channels, out_channels, 3, padding=1
        )

    def make_resnet(self, name: str, in_channels: int, out_channels: int) -> nn.Module:
        kind = lookup_block(RESNETS, f"{self.half} resnet", name)
        return kind(in_channels, out_channels, self.groups, self.dropout)

    def make_attention(self, channels: int) -> nn.Module:
        return lookup_block(ATTENTIONS, f"{self.half}_attention", self.attention)(channels, self.groups)

    def make_mid_block(self, channels: int) -> "MidBlock":
        return MidBlock(
            self.make_resnet(self.mid_resnet, channels, channels),
            self.make_attention(channels),
            self.make_resnet(self.mid_resnet, channels, channels),
        )


class MidBlock(nn.Module):
    def __init__(self, block_1: nn.Module, attn_1: nn.Module, block_2: nn.Module):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = block_1, attn_1, block_2

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class UNetLevel(nn.Module):
    """Residual blocks of one size, each with attention or none, then resampling in space and in time."""

    def __init__(
        self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module], resample: Mapping[str, nn.Module]
    ):
        super().__init__()
        self.block = nn.ModuleList(resnets)
        self.attn = nn.ModuleList(attentions)
        self.after = list(resample)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in self.after:
            x = self.get_submodule(name)(x)
        return x


def make_level(
    config: HalfConfig, level: int, in_channels: int, resample: Mapping[str, nn.Module], size: int
) -> UNetLevel:
    out = config.widths[level]
    kind = config.resnet_blocks[level]
    widths = [in_channels] + [out] * config.resnets_per_level
    resnets = [config.make_resnet(kind, a, b) for a, b in pairwise(widths)]
    attentions = [config.make_attention(out) for _ in resnets] if size in config.attn_resolutions else []
    return UNetLevel(resnets, attentions, resample)


class Encoder(nn.Module):
    """[B, 3, T, H, W] -> [B, z_channels, t, h, w]."""

    def __init__(self, config: HalfConfig, in_channels: int = 3):
        super().__init__()
        widths, size = config.widths, config.resolution
        if config.spatial[-1] or config.temporal[-1]:
            raise ConfigError('CausalVAEModel: encoder: the last level cannot downsample; put "" last in both lists')
        self.conv_in = config.make_conv("conv_in", in_channels, widths[0])
        self.down = nn.ModuleList()
        for i, (spatial, temporal) in enumerate(zip(config.spatial, config.temporal, strict=True)):
            resample: dict[str, nn.Module] = {}
            if spatial:
                resample["downsample"] = lookup_block(SPATIAL_DOWN, "encoder_spatial_downsample", spatial)(widths[i])
            if temporal:
                kind = lookup_block(TIME_DOWN, "encoder_temporal_downsample", temporal)
                resample["time_downsample"] = kind(widths[i], config.groups)
            self.down.append(make_level(config, i, widths[max(i - 1, 0)], resample, size))
            size //= 2 if spatial else 1
        self.mid = config.make_mid_block(widths[-1])
        self.norm_out = blocks.group_norm(widths[-1], config.groups) if config.norm_out else None
        self.conv_out = config.make_conv("conv_out", widths[-1], config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(x if self.norm_out is None else F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """[B, z_channels, t, h, w] -> [B, 3, T, H, W]; levels are kept finest first and run from the coarsest."""

    def __init__(self, config: HalfConfig, out_channels: int = 3):
        super().__init__()
        widths = config.widths
        size = config.resolution // 2 ** (len(widths) - 1)
        self.conv_in = config.make_conv("conv_in", config.z_channels, widths[-1])
        self.mid = config.make_mid_block(widths[-1])
        levels: list[nn.Module] = []
        for i in reversed(range(len(widths))):
            resample: dict[str, nn.Module] = {}
            if config.spatial[i]:
                resample["upsample"] = lookup_block(SPATIAL_UP, "decoder_spatial_upsample", config.spatial[i])(
                    widths[i]
                )
            if config.temporal[i]:
                kind = lookup_block(TIME_UP, "decoder_temporal_upsample", config.temporal[i])
                resample["time_upsample"] = kind(widths[i], config.groups)
            levels.insert(0, make_level(config, i, widths[min(i + 1, len(widths) - 1)], resample, size))
            size *= 2 if config.spatial[i] else 1
        self.up = nn.ModuleList(levels)
        self.norm_out = blocks.group_norm(widths[0], config.groups) if config.norm_out else None
        self.conv_out = config.make_conv("conv_out", widths[0], out_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(x if self.norm_out is None else F.silu(self.norm_out(x)))
