"""VAE_Temporal: the causal autoencoder that Open-Sora 1.2 puts behind an image autoencoder, 4x in time.

Shapes: B batch, C latent channels, T H W frames/rows/columns. What it codes are clips of any channels, as a rule the
latents of an image autoencoder; rows and columns stay as they are. Key names follow Open-Sora 1.2.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch.nn.functional as F
from torch import Generator, Tensor, nn

from opensora.errors import ConfigError
from opensora.models.layers.patch import at_least_float32
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.causal_blocks import ZeroCausalConv3d, zero_frames_in_front
from opensora.models.vae.gaussian import Gaussian, LatentScale
from opensora.models.vae.hub_folder import fill_from_folder
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


def blocks(widths: Sequence[int], groups: int) -> nn.ModuleList:
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
            blocks([a] + [b] * num_res_blocks, groups) for a, b in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            HalveFrames(width) if wanted else nn.Identity() for width, wanted in zip(widths[:-1], halve, strict=True)
        )
        last = widths[-1]
        self.res_blocks = blocks([last] * (num_res_blocks + 1), groups)
        self.norm1 = nn.GroupNorm(groups, last, eps=NORM_EPS)
        self.conv2 = ZeroCausalConv3d(last, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.block_res_blocks):
            x = _through(level, x)
            if i < len(self.conv_blocks):
                x = self.conv_blocks[i](x)
        return self.conv2(F.silu(self.norm1(_through(self.res_blocks, x))))


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
        self.res_blocks = blocks([last] * (num_res_blocks + 1), groups)
        before = [*widths[1:], last]
        self.block_res_blocks = nn.ModuleList(
            blocks([a] + [b] * num_res_blocks, groups) for a, b in zip(before, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            DoubleFrames(width) if wanted else nn.Identity() for width, wanted in zip(widths[1:], double, strict=True)
        )
        self.norm1 = nn.GroupNorm(groups, widths[0], eps=NORM_EPS)
        self.conv_out = ZeroCausalConv3d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = _through(self.res_blocks, self.conv1(z))
        for i in reversed(range(len(self.block_res_blocks))):
            x = _through(self.block_res_blocks[i], x)
            if i:
                x = self.conv_blocks[i - 1](x)
        return self.conv_out(F.silu(self.norm1(x)))


def _through(chain: Any, x: Tensor) -> Tensor:
    for module in chain:
        x = module(x)
    return x


@VAES.register_module()
class VAE_Temporal(nn.Module):
    """The defaults are the released layout, whose clips are the 4-channel latents of an image autoencoder.

    from_pretrained: a folder with config.json and weights. Building reads the config only, `load()` the weights.
    in_out_channels: of the clips. latent_embed_dim: between encoder and quantising convolution; embed_dim: of the
    latents. channel_multipliers: one per level, times `filters`; temporal_downsample: one per level but the last.
    scaling_factor, or latent_shift and latent_scale (one number per latent channel): diffusion sees
    (z - shift) * scale.

    A clip is filled up in front with zero frames to a multiple of the compression F, so T frames have ceil(T / F)
    latent frames, and `decode` must be told T to know how many frames of the first latent to drop.
    """

    def __init__(
        self,
        from_pretrained: str | None = None,
        in_out_channels: int = 4,
        latent_embed_dim: int = 4,
        embed_dim: int = 4,
        filters: int = 128,
        num_res_blocks: int = 4,
        channel_multipliers: Sequence[int] = (1, 2, 2, 4),
        temporal_downsample: Sequence[bool] = (False, True, True),
        num_groups: int = 32,
        scaling_factor: float = 1.0,
        latent_shift: Sequence[float] | None = None,
        latent_scale: Sequence[float] | None = None,
    ):
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__", "from_pretrained")}
        super().__init__()
        if from_pretrained is not None:
            given = fill_from_folder(type(self), given, read_config(from_pretrained), from_pretrained)
        self.from_pretrained = from_pretrained
        self.config: dict[str, Any] = {"type": "VAE_Temporal", **given}  # rebuilds this module without a folder
        self._build(**given)

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
        """Read the weights of `from_pretrained`; without one the fresh initial weights stay."""
        if self.from_pretrained is not None:
            load_weights(self, Path(self.from_pretrained))
        return self

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight that an adversarial loss is balanced at."""
        weight = self.decoder.conv_out.conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The modules whose activations may be recomputed instead of kept."""
        return [module for module in self.modules() if isinstance(module, ResBlock)]

    def latent_size(self, size: Sequence[int]) -> tuple[int, int, int]:
        """(frames, rows, columns) of a clip -> the same of the latents."""
        t, h, w = size
        return -(-t // self.compression[0]), h, w

    def posterior(self, x_BCTHW: Tensor) -> Gaussian:
        """The latents' distribution for clips of `in_channels` channels."""
        if x_BCTHW.shape[1] != self.in_channels:
            raise ShapeError(f"VAE_Temporal: {x_BCTHW.shape[1]} channels; {self.in_channels} are needed")
        filled = zero_frames_in_front(x_BCTHW.to(self.last_layer.dtype), -x_BCTHW.shape[2] % self.compression[0])
        return Gaussian.from_moments(self.quant_conv(self.encoder(filled)))

    def shortest(self, latent_frames: int) -> int:
        """Frames of the shortest clip that has so many latent frames."""
        return (latent_frames - 1) * self.compression[0] + 1

    def decode_latents(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Like `decode`, of latents as the posterior gives them."""
        factor = self.compression[0]
        shortest = self.shortest(z.shape[2])
        asked = shortest if num_frames is None else num_frames
        if asked > z.shape[2] * factor:
            raise ShapeError(
                f"VAE_Temporal: {asked} frames asked of {z.shape[2]} latent frames, which hold {z.shape[2] * factor}"
            )
        whole = max(asked, shortest)  # the clip that these latents are taken to be made of
        x = self.decoder(self.post_quant_conv(z.to(self.last_layer.dtype)))
        filling = -whole % factor
        return at_least_float32(x[:, :, filling : filling + asked])

    def encode(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """Latents ready for diffusion, float32; `rngs` has one CPU generator per clip, None takes the mode."""
        return self.latents.normalise(self.posterior(x_BCTHW).draw(rngs))

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Clips of `num_frames` frames, float32, from latents as `encode` gives them.

        num_frames: how many frames were encoded. None takes the shortest clip with so many latents, and fewer frames
        than that are the first ones of it.
        """
        return self.decode_latents(self.latents.restore(z), num_frames)

    def forward(self, x: Tensor, rngs: Sequence[Generator] | None = None) -> tuple[Tensor, Gaussian]:
        """Reconstruction (float32) and posterior."""
        posterior = self.posterior(x)
        return self.decode_latents(posterior.draw(rngs), x.shape[2]), posterior


register_preset(VAES, "VAE_Temporal_SD", VAE_Temporal)  # the name of the released layout, which the defaults are
