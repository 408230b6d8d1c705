"""VAE_Temporal: Open-Sora 1.2's causal autoencoder in time, 4x, applied to the latents of an image autoencoder.

Shapes: B batch, C latent channels, T H W frames/rows/columns. Its "clips" are usually the latents of an image
autoencoder; rows and columns keep their number. Key names follow Open-Sora 1.2.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from opensora.errors import ConfigError
from opensora.interfaces import Size
from opensora.models.layers.patch import at_least_float32
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.base import VideoAutoencoder
from opensora.models.vae.causal_blocks import ZeroCausalConv3d, zero_frames_in_front
from opensora.models.vae.gaussian import Gaussian, LatentScale
from opensora.models.vae.hub_folder import merge_stored_config
from opensora.models.weights import load_weights, read_config
from opensora.registry import VAES, register_preset

NORM_EPS = 1e-5


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice; no convolution has a bias. `conv3` fits the channels where they change."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = ZeroCausalConv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = ZeroCausalConv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.conv3 = ZeroCausalConv3d(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return (x if self.conv3 is None else self.conv3(x)) + h


class HalveFrames(ZeroCausalConv3d):
    """T -> T / 2. One zero frame in front, not two: every output frame sees the pair it stands for and one before."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, (2, 1, 1), padding=1)
        self.front = 1


class DoubleFrames(ZeroCausalConv3d):
    """T -> 2 T: a convolution gives two frames per frame on its channels, the second one next to the first."""

    def __init__(self, channels: int):
        super().__init__(channels, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        pairs = super().forward(x).unflatten(1, (-1, 2))  # [B, C, 2, T, H, W]
        return pairs.transpose(2, 3).flatten(2, 3)


def res_blocks(widths: Sequence[int], groups: int) -> nn.ModuleList:
    return nn.ModuleList(ResBlock(a, b, groups) for a, b in pairwise(widths))


class Encoder(nn.Module):
    """[B, in_channels, T, H, W] -> [B, out_channels, T / F, H, W]; level 0 is the finest in time."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        halve: Sequence[bool],
        groups: int,
    ):
        super().__init__()
        self.conv_in = ZeroCausalConv3d(in_channels, widths[0], 3, padding=1, bias=False)
        before = [widths[0], *widths[:-1]]
        self.block_res_blocks = nn.ModuleList(
            res_blocks([a] + [b] * num_res_blocks, groups) for a, b in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            HalveFrames(width) if halves else nn.Identity() for width, halves in zip(widths[:-1], halve, strict=True)
        )
        last = widths[-1]
        self.res_blocks = res_blocks([last] * (num_res_blocks + 1), groups)
        self.norm1 = nn.GroupNorm(groups, last, eps=NORM_EPS)
        self.conv2 = ZeroCausalConv3d(last, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.block_res_blocks):
            x = _run_blocks(level, x)
            if i < len(self.conv_blocks):
                x = self.conv_blocks[i](x)
        return self.conv2(F.silu(self.norm1(_run_blocks(self.res_blocks, x))))


class Decoder(nn.Module):
    """[B, in_channels, t, H, W] -> [B, out_channels, t F, H, W]; levels are kept finest first, run coarsest first."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int],
        num_res_blocks: int,
        double: Sequence[bool],
        groups: int,
    ):
        super().__init__()
        last = widths[-1]
        self.conv1 = ZeroCausalConv3d(in_channels, last, 3, padding=1)
        self.res_blocks = res_blocks([last] * (num_res_blocks + 1), groups)
        before = [*widths[1:], last]
        self.block_res_blocks = nn.ModuleList(
            res_blocks([a] + [b] * num_res_blocks, groups) for a, b in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            DoubleFrames(width) if doubles else nn.Identity() for width, doubles in zip(widths[1:], double, strict=True)
        )
        self.norm1 = nn.GroupNorm(groups, widths[0], eps=NORM_EPS)
        self.conv_out = ZeroCausalConv3d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = _run_blocks(self.res_blocks, self.conv1(z))
        for i in reversed(range(len(self.block_res_blocks))):
            x = _run_blocks(self.block_res_blocks[i], x)
            if i:
                x = self.conv_blocks[i - 1](x)
        return self.conv_out(F.silu(self.norm1(x)))


def _run_blocks(blocks: nn.Module, x: Tensor) -> Tensor:
    for block in blocks.children():
        x = block(x)
    return x


@VAES.register_module()
class VAE_Temporal(VideoAutoencoder):
    """The defaults are the released layout. Building reads config.json only, `load()` the weights.

    Clips are padded in front with zero frames to a multiple of the compression F, so T frames have ceil(T / F) latent
    frames, and `decode` needs T to drop the padding.
    """

    def __init__(
        self,
        from_pretrained: str | None = None,  # folder with config.json and weights
        in_out_channels: int = 4,  # of the clips; released: latents of an image autoencoder
        latent_embed_dim: int = 4,  # between encoder and quant_conv
        embed_dim: int = 4,  # latent channels
        filters: int = 128,  # channels of the finest level
        num_res_blocks: int = 4,  # per level
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),  # channels per level / filters
        temporal_downsample: Sequence[bool] = (False, True, True),  # halve the frames, for each level but the last
        num_groups: int = 32,  # of every GroupNorm
        # Diffusion works on (z - shift) * scale.
        scaling_factor: float = 1.0,  # the scale, unless latent_scale is given
        latent_shift: Sequence[float] | None = None,  # one number per latent channel
        latent_scale: Sequence[float] | None = None,  # one number per latent channel
    ):
        arguments = {
            key: value for key, value in locals().items() if key not in ("self", "__class__", "from_pretrained")
        }
        super().__init__()
        if from_pretrained is not None:
            arguments = merge_stored_config(type(self), arguments, read_config(from_pretrained), from_pretrained)
        self.from_pretrained = from_pretrained
        self.config: dict[str, Any] = {"type": "VAE_Temporal", **arguments}
        self._build(**arguments)

    def _build(self, **config: Any) -> None:
        widths = [config["filters"] * factor for factor in config["channel_multipliers"]]
        halve, groups = config["temporal_downsample"], config["num_groups"]
        if len(halve) != len(widths) - 1:
            raise ConfigError(
                f"VAE_Temporal: temporal_downsample: {len(halve)} entries for {len(widths)} channel_multipliers; give "
                "one for each level but the last"
            )
        for width in widths:
            if width % groups:
                raise ConfigError(
                    f"VAE_Temporal: {width} channels (filters times channel_multipliers) do not fall into "
                    f"num_groups={groups} equal groups; choose num_groups that divides every width"
                )
        self.in_channels: int = config["in_out_channels"]
        self.latent_channels: int = config["embed_dim"]
        inner, resnets = config["latent_embed_dim"], config["num_res_blocks"]
        self.encoder = Encoder(self.in_channels, 2 * inner, widths, resnets, halve, groups)
        self.quant_conv = ZeroCausalConv3d(2 * inner, 2 * self.latent_channels, 1)
        self.post_quant_conv = ZeroCausalConv3d(self.latent_channels, inner, 1)
        self.decoder = Decoder(inner, self.in_channels, widths, resnets, halve, groups)
        self.compression = (2 ** sum(map(bool, halve)), 1, 1)
        self.latents = LatentScale(config["scaling_factor"], config["latent_shift"], config["latent_scale"])

    def load(self) -> Self:
        """Read the weights of `from_pretrained`; without one the initial weights stay. Raises WeightsError."""
        if self.from_pretrained is not None:
            load_weights(self, Path(self.from_pretrained))
        return self

    @property
    def last_layer(self) -> nn.Parameter:
        weight = self.decoder.conv_out.conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def checkpoint_blocks(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, ResBlock)]

    def latent_size(self, size: Size) -> Size:
        t, h, w = size
        return -(-t // self.compression[0]), h, w

    def posterior(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Gaussian:
        self.require_loaded()
        if x_BCTHW.shape[1] != self.in_channels:
            raise ShapeError(f"VAE_Temporal: {x_BCTHW.shape[1]} channels; {self.in_channels} are needed")
        padded = zero_frames_in_front(x_BCTHW.to(self.last_layer.dtype), -x_BCTHW.shape[2] % self.compression[0])
        return Gaussian.from_moments(self.quant_conv(self.encoder(padded)))

    def shortest(self, latent_frames: int) -> int:
        """Frames of the shortest clip with `latent_frames`."""
        return (latent_frames - 1) * self.compression[0] + 1

    def decode_latents(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """`decode` for latents that are not normalized."""
        self.require_loaded()
        factor = self.compression[0]
        shortest = self.shortest(z.shape[2])
        wanted = shortest if num_frames is None else num_frames
        if wanted > z.shape[2] * factor:
            raise ShapeError(
                f"VAE_Temporal: {wanted} frames requested of {z.shape[2]} latent frames, which hold {z.shape[2] * factor}"
            )
        whole = max(wanted, shortest)  # assumed length of the encoded clip
        x = self.decoder(self.post_quant_conv(z.to(self.last_layer.dtype)))
        padding = -whole % factor
        return at_least_float32(x[:, :, padding : padding + wanted])

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Clips of `num_frames` frames, float32, from normalized latents.

        num_frames: how many frames were encoded. None assumes the shortest clip with these latents; fewer frames are the
        first ones of that clip.
        """
        return self.decode_latents(self.latents.restore(z), num_frames)

    def forward(self, x: Tensor, rngs: Sequence[Generator] | None = None) -> tuple[Tensor, Gaussian]:
        """Reconstruction (float32) and posterior."""
        posterior = self.posterior(x)
        return self.decode_latents(posterior.draw(rngs), x.shape[2]), posterior


register_preset(VAES, "VAE_Temporal_SD", VAE_Temporal)  # the name of the released layout, which the defaults are
