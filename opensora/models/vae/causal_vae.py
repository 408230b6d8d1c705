"""CausalVAEModel: the causal video autoencoder of Open-Sora-Plan, 4x in time and 8x8 in space as released.

Shapes: B batch, C latent channels, T H W frames/rows/columns, lower case the latent ones.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from opensora.errors import ConfigError
from opensora.interfaces import Size
from opensora.models.layers.patch import at_least_float32
from opensora.models.layers.seam import TileMap
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.base import VideoAutoencoder
from opensora.models.vae.causal_net import CONVOLUTIONS, Decoder, Encoder, HalfConfig, lookup_block
from opensora.models.vae.gaussian import Gaussian, LatentScale
from opensora.models.vae.hub_folder import fetch_folder, merge_stored_config, read_stored_config
from opensora.models.vae.tiling import Tiling, code_windows, concat_windows, first_frames
from opensora.models.weights import load_weights
from opensora.registry import VAES


@VAES.register_module()
class CausalVAEModel(VideoAutoencoder):
    """The defaults are the released 1.1.0 layout. Building reads config.json only, `load()` the weights.

    Block lists have one entry per level, the finest first; "" means no block.
    """

    in_channels = 3

    def __init__(
        self,
        from_pretrained: str | None = None,  # folder with config.json and weights; or a hub id of the layout given here
        subfolder: str | None = None,  # of from_pretrained
        hidden_size: int = 128,  # channels of the finest level
        hidden_size_mult: Sequence[int] = (1, 2, 4, 4),  # channels per level / hidden_size
        num_res_blocks: int = 2,  # per level; the decoder has one more
        z_channels: int = 4,  # between encoder and quant_conv
        embed_dim: int = 4,  # latent channels
        double_z: bool = True,  # the encoder predicts mean and log-variance
        attn_resolutions: Sequence[int] = (),  # pixels per side of the levels with attention, ...
        resolution: int = 256,  # ... when clips have this many
        dropout: float = 0.0,
        norm_groups: int = 32,  # of every GroupNorm
        norm_out: bool = True,  # a norm and SiLU before the last convolution of encoder and decoder, as released weights have
        q_conv: str = "CausalConv3d",
        encoder_conv_in: str = "Conv2d",
        encoder_conv_out: str = "CausalConv3d",
        encoder_attention: str = "AttnBlock3DFix",
        encoder_resnet_blocks: Sequence[str] = ("ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"),
        encoder_spatial_downsample: Sequence[str] = ("Downsample", "Downsample", "Downsample", ""),
        encoder_temporal_downsample: Sequence[str] = ("", "TimeDownsampleRes2x", "TimeDownsampleRes2x", ""),
        encoder_mid_resnet: str = "ResnetBlock3D",
        decoder_conv_in: str = "CausalConv3d",
        decoder_conv_out: str = "CausalConv3d",
        decoder_attention: str = "AttnBlock3DFix",
        decoder_resnet_blocks: Sequence[str] = ("ResnetBlock3D", "ResnetBlock3D", "ResnetBlock3D", "ResnetBlock3D"),
        decoder_spatial_upsample: Sequence[str] = ("", "SpatialUpsample2x", "SpatialUpsample2x", "SpatialUpsample2x"),
        decoder_temporal_upsample: Sequence[str] = ("", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x"),
        decoder_mid_resnet: str = "ResnetBlock3D",
        # Diffusion works on (z - shift) * scale.
        scaling_factor: float = 0.18215,  # the scale, unless latent_scale is given
        latent_shift: Sequence[float] | None = None,  # one number per latent channel
        latent_scale: Sequence[float] | None = None,  # one number per latent channel
        # Code larger clips in windows and tiles, so that memory does not grow with the clip.
        use_tiling: bool = False,
        tile_sample_min_size: int = 256,  # rows and columns of a tile in pixels
        tile_sample_min_size_t: int = 65,  # frames of a window
        tile_overlap_factor: float = 0.25,  # share of a tile's side that its neighbor covers as well
    ):
        not_layout = ("self", "__class__", "from_pretrained", "subfolder")
        arguments = {key: value for key, value in locals().items() if key not in (*not_layout, "not_layout")}
        super().__init__()
        if from_pretrained is not None:
            stored = read_stored_config(from_pretrained, subfolder)
            arguments = merge_stored_config(type(self), arguments, stored, from_pretrained)
        self.from_pretrained, self.subfolder = from_pretrained, subfolder
        self.config: dict[str, Any] = {"type": "CausalVAEModel", **arguments}
        self._build(**arguments)

    def _build(self, **config: Any) -> None:
        widths = [config["hidden_size"] * factor for factor in config["hidden_size_mult"]]
        z, embed = config["z_channels"], config["embed_dim"]
        moments = 2 if config["double_z"] else 1

        def half_config(half: str, resnets: int, spatial: str, temporal: str, channels: int) -> HalfConfig:
            return HalfConfig(
                half=half,
                widths=widths,
                z_channels=channels,
                resnets_per_level=resnets,
                spatial=config[f"{half}_spatial_{spatial}"],
                temporal=config[f"{half}_temporal_{temporal}"],
                groups=config["norm_groups"],
                **{key: config[key] for key in ("attn_resolutions", "resolution", "dropout", "norm_out")},
                **{
                    key: config[f"{half}_{key}"]
                    for key in ("conv_in", "conv_out", "attention", "resnet_blocks", "mid_resnet")
                },
            )

        resnets = config["num_res_blocks"]
        self.encoder = Encoder(half_config("encoder", resnets, "downsample", "downsample", moments * z))
        self.decoder = Decoder(half_config("decoder", resnets + 1, "upsample", "upsample", z))
        q_conv = lookup_block(CONVOLUTIONS, "q_conv", config["q_conv"])
        self.quant_conv = q_conv(moments * z, 2 * embed, 1)
        self.post_quant_conv = q_conv(embed, z, 1)

        down = config["encoder_spatial_downsample"], config["encoder_temporal_downsample"]
        up = config["decoder_spatial_upsample"], config["decoder_temporal_upsample"]
        self._halvings = tuple(sum(map(bool, names)) for names in down)  # in space, in time
        if self._halvings != tuple(sum(map(bool, names)) for names in up):
            raise ConfigError(
                f"CausalVAEModel: the encoder halves rows and columns {self._halvings[0]} times and frames "
                f"{self._halvings[1]} times; give the decoder the same numbers of upsampling blocks"
            )
        self.latent_channels: int = embed
        self.compression = (2 ** self._halvings[1], 2 ** self._halvings[0], 2 ** self._halvings[0])
        self.latents = LatentScale(config["scaling_factor"], config["latent_shift"], config["latent_scale"])
        self.tile_map = TileMap()
        self.use_tiling: bool = config["use_tiling"]
        self.tiling = Tiling(
            config["tile_sample_min_size"],
            config["tile_sample_min_size_t"],
            config["tile_overlap_factor"],
            self.compression,
        )

    def load(self) -> Self:
        """Read the weights of `from_pretrained`; without one the initial weights stay. Raises WeightsError."""
        if self.from_pretrained is not None:
            folder = fetch_folder(self.from_pretrained, self.subfolder, ("*.safetensors", "*.ckpt"))
            load_weights(self, folder, ignore=["loss."])  # Lightning saves its loss networks too
        return self

    @property
    def last_layer(self) -> nn.Parameter:
        return next(p for name, p in self.decoder.conv_out.named_parameters() if name.endswith("weight"))

    def checkpoint_blocks(self) -> list[nn.Module]:
        return [*self.encoder.down, self.encoder.mid, self.decoder.mid, *self.decoder.up]

    def enable_tiling(self) -> None:
        """From now on code clips in windows and tiles when they exceed one."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """From now on code every clip whole."""
        self.use_tiling = False

    def latent_size(self, size: Size) -> Size:
        t, h, w = size
        for _ in range(self._halvings[1]):
            t = (t - 1) // 2 + 1
        factor = self.compression[1]
        return t, h // factor, w // factor

    def holds_frames(self, num_frames: int) -> bool:
        return (num_frames - 1) % self.compression[0] == 0

    def posterior(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Gaussian:
        factor = self.compression[1]
        if x_BCTHW.shape[1] != self.in_channels or min(x_BCTHW.shape[3:]) < factor:
            raise ShapeError(
                f"CausalVAEModel: clips of {list(x_BCTHW.shape[1:])} (channels, frames, rows, columns); needed: "
                f"{self.in_channels} channels and at least {factor} rows and columns"
            )
        grid = self.tiling.encoding()
        if self.use_tiling and grid.is_exceeded_by(x_BCTHW.shape[2:]):
            moments = torch.cat(list(code_windows(self.encode_tile, x_BCTHW, grid, self.tile_map)), dim=2)
        else:
            moments = self.encode_tile(x_BCTHW)
        return Gaussian.from_moments(moments)

    def encode_tile(self, x_BCTHW: Tensor) -> Tensor:
        """Moments (mean and log-variance, on channels) of a clip or tile, computed at once."""
        self.require_loaded()
        return self.quant_conv(self.encoder(x_BCTHW.to(self._dtype)))

    def decode_tile(self, z: Tensor) -> Tensor:
        """Frames, float32, of posterior latents or a tile of them, computed at once."""
        self.require_loaded()
        return at_least_float32(self.decoder(self.post_quant_conv(z.to(self._dtype))))

    def _decode_windows(self, z: Tensor) -> Iterator[Tensor]:
        grid = self.tiling.decoding()
        if self.use_tiling and grid.is_exceeded_by(z.shape[2:]):
            return code_windows(self.decode_tile, z, grid, self.tile_map)
        return (self.decode_tile(whole) for whole in (z,))

    def _decode(self, z: Tensor) -> Tensor:
        return concat_windows(self._decode_windows(z), self._frames_in(z))

    def _frames_in(self, z: Tensor) -> int:
        """Frames that the latents `z` stand for."""
        return (z.shape[2] - 1) * self.compression[0] + 1

    @property
    def _dtype(self) -> torch.dtype:
        return self.last_layer.dtype

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Clips float32, about in [-1, 1], from normalized latents; the first `num_frames` frames."""
        available = self._frames_in(z)
        return concat_windows(self.decode_windows(z, num_frames), available if num_frames is None else num_frames)

    def decode_windows(self, z: Tensor, num_frames: int | None = None) -> Iterator[Tensor]:
        """The frames of `decode` in order, one window at a time; without tiling in a single window.

        Memory does not grow with the clip if the caller deletes each window before it takes the next:
        `for window in vae.decode_windows(z): write(window); del window`.
        """
        available = self._frames_in(z)
        if num_frames is not None and num_frames > available:
            raise ShapeError(
                f"CausalVAEModel: {num_frames} frames requested of {z.shape[2]} latent frames, which hold {available}"
            )
        return first_frames(
            self._decode_windows(self.latents.restore(z)), available if num_frames is None else num_frames
        )

    def forward(self, x: Tensor, rngs: Sequence[Generator] | None = None) -> tuple[Tensor, Gaussian]:
        """Reconstruction (float32) and posterior. Frames must be a multiple of the compression plus one."""
        factor = self.compression[0]
        if not self.holds_frames(x.shape[2]):
            raise ShapeError(
                f"CausalVAEModel: clips of {x.shape[2]} frames would lose some; give {factor} k + 1 frames, "
                f"for example {x.shape[2] // factor * factor + 1}"
            )
        posterior = self.posterior(x)
        return self._decode(posterior.draw(rngs)), posterior
