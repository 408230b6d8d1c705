"""OpenSoraVAE_V1_2: an image autoencoder per frame, and a causal one in time over its latents, 4x8x8 as released.

Shapes: B batch, C latent channels, T H W frames/rows/columns, lower case the latent ones. x_z: spatial latents
[B, C, T, h, w], which still have every frame.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Generator, Tensor, nn

from opensora.errors import ConfigError
from opensora.interfaces import Size
from opensora.models.layers.patch import at_least_float32
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.autoencoder_kl import VideoAutoencoderKL
from opensora.models.vae.base import VideoAutoencoder
from opensora.models.vae.gaussian import Gaussian, LatentScale
from opensora.models.vae.hub_folder import fetch_folder, merge_stored_config, read_stored_config
from opensora.models.vae.temporal_vae import VAE_Temporal
from opensora.models.weights import load_weights
from opensora.registry import VAES

# Arguments of diffusers' AutoencoderKL: the layout of Stable Diffusion's and SDXL's autoencoders.
SD_LAYOUT = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 512,
}
# VAE_Temporal does not scale its latents: OpenSoraVAE_V1_2 does.
Part = TypeVar("Part", bound=VideoAutoencoder)
_SPLITTING = ("micro_batch_size", "use_tiling")  # arguments of the spatial part that the whole has
UNSCALED: dict[str, Any] = {"scaling_factor": 1.0, "latent_shift": None, "latent_scale": None}


class LatentReconstruction(NamedTuple):
    """Of a training step on spatial latents."""

    output: Tensor  # reconstructed spatial latents [B, C, T, h, w], float32
    posterior: Gaussian
    target: Tensor  # spatial latents, without a graph
    latents: Tensor  # drawn from the posterior


@VAES.register_module()
class OpenSoraVAE_V1_2(VideoAutoencoder):
    """The defaults are the released layout. Keys: `spatial_vae.module.*`, `temporal_vae.*`, buffers `shift`, `scale`.

    Building reads config.json only, `load()` the weights.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        from_pretrained: str | None = None,  # folder with config.json and weights; or a hub id of the layout given here
        # Without from_pretrained, `load()` reads the from_pretrained in these two.
        spatial: dict[str, Any] | None = None,  # arguments of VideoAutoencoderKL, without `type`
        temporal: dict[str, Any] | None = None,  # layout arguments of VAE_Temporal, without `type`
        micro_frame_size: int | None = 17,  # frames the temporal part codes, and pads, at a time; None = all
        micro_batch_size: int | None = 4,  # frames the spatial part codes at a time; None = all
        use_tiling: bool = False,  # the spatial part codes frames in tiles, see VideoAutoencoderKL
        # Diffusion works on (z - shift) / scale; these are buffers, which weights overwrite.
        shift: float | Sequence[float] = (-0.10, 0.34, 0.27, 0.98),  # one number, or one per latent channel
        scale: float | Sequence[float] = (3.85, 2.32, 2.33, 3.06),  # one number, or one per latent channel
        # Measured after a training, these replace both: (z - latent_shift) * latent_scale.
        latent_shift: Sequence[float] | None = None,  # one number per latent channel
        latent_scale: Sequence[float] | None = None,  # one number per latent channel
        freeze_spatial: bool = False,  # train the temporal part only
    ):
        arguments = {
            key: value for key, value in locals().items() if key not in ("self", "__class__", "from_pretrained")
        }
        super().__init__()
        if from_pretrained is not None:
            arguments = merge_stored_config(type(self), arguments, read_stored_config(from_pretrained), from_pretrained)
        self.from_pretrained = from_pretrained
        self._build(**arguments)
        # the parts' arguments include those that their own folders hold
        self.config: dict[str, Any] = {
            "type": "OpenSoraVAE_V1_2",
            **arguments,
            "spatial": _config_without(self.spatial_vae.config, without=_SPLITTING),
            "temporal": _config_without(self.temporal_vae.config, without=UNSCALED),
        }

    def _build(self, **config: Any) -> None:
        self.micro_frame_size: int | None = config["micro_frame_size"]
        if self.micro_frame_size is not None and self.micro_frame_size < 1:
            raise ConfigError(
                f"OpenSoraVAE_V1_2: micro_frame_size: {self.micro_frame_size}; allowed: 1 or more, or None"
            )
        spatial, temporal = config["spatial"] or {}, config["temporal"] or {}
        if "config" not in spatial and spatial.get("from_pretrained") is None:
            spatial = {"config": SD_LAYOUT, **spatial}
        splitting = {name: config[name] for name in _SPLITTING}
        self.spatial_vae = _build_part(VideoAutoencoderKL, "spatial", spatial, **splitting)
        channels = self.spatial_vae.latent_channels
        self.temporal_vae = _build_part(VAE_Temporal, "temporal", temporal, **UNSCALED)
        if self.temporal_vae.in_channels != channels:
            raise ConfigError(
                f"OpenSoraVAE_V1_2: temporal: in_out_channels is {self.temporal_vae.in_channels}; the spatial part has "
                f"{channels} latent channels, so give {channels}"
            )
        self.in_channels = self.spatial_vae.in_channels
        self.latent_channels = self.temporal_vae.latent_channels
        self.compression = (self.temporal_vae.compression[0], *self.spatial_vae.compression[1:])
        for name in ("shift", "scale"):
            self.register_buffer(name, self._per_channel(name, config[name]))
        measured = config["latent_shift"], config["latent_scale"]
        self.measured = None if measured == (None, None) else LatentScale(1.0, *measured)
        if config["freeze_spatial"]:
            self.spatial_vae.requires_grad_(False)

    def _per_channel(self, name: str, values: float | Sequence[float]) -> Tensor:
        if isinstance(values, int | float):
            return torch.tensor(float(values))
        if len(values) != self.latent_channels:
            raise ConfigError(
                f"OpenSoraVAE_V1_2: {name}: {len(values)} numbers; allowed: one, or {self.latent_channels}, one per "
                "latent channel"
            )
        return torch.tensor([float(value) for value in values]).view(1, -1, 1, 1, 1)

    def load(self) -> Self:
        """Read the weights of `from_pretrained`, or of the parts; without any the initial weights stay."""
        if self.from_pretrained is not None:
            load_weights(self, fetch_folder(self.from_pretrained))
        else:
            self.spatial_vae.load()
            self.temporal_vae.load()
        return self

    @property
    def last_layer(self) -> nn.Parameter:
        return self.spatial_vae.last_layer

    def checkpoint_blocks(self) -> list[nn.Module]:
        return [*self.spatial_vae.checkpoint_blocks(), *self.temporal_vae.checkpoint_blocks()]

    def latent_size(self, size: Size) -> Size:
        t, h, w = self.spatial_vae.latent_size(size)
        clips = _chunk_lengths(t, self.micro_frame_size)
        return sum(self.temporal_vae.latent_size((frames, h, w))[0] for frames in clips), h, w

    def temporal_posterior(self, x_z: Tensor) -> Gaussian:
        """The posterior given the spatial latents, chunk by chunk."""
        clips = x_z.split(self.micro_frame_size or x_z.shape[2], dim=2)
        parts = [self.temporal_vae.posterior(clip) for clip in clips]
        return Gaussian(torch.cat([p.mean for p in parts], dim=2), torch.cat([p.logvar for p in parts], dim=2))

    def posterior(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Gaussian:
        """The posterior, given spatial latents that are sampled with `rngs` (None: their mode)."""
        self.require_loaded()
        return self.temporal_posterior(self.spatial_vae.encode(x_BCTHW, rngs))

    def normalize(self, z: Tensor) -> Tensor:
        """Posterior latents to the scale that diffusion works at."""
        if self.measured is not None:
            return self.measured.normalize(z)
        return (z - self.shift) / self.scale

    def restore(self, z: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return z * self.scale + self.shift if self.measured is None else self.measured.restore(z)

    def _decode(self, z: Tensor, num_frames: int | None) -> Tensor:
        return self.spatial_vae.decode(self._decode_in_time(z, num_frames))

    def _decode_in_time(self, z: Tensor, num_frames: int | None) -> Tensor:
        """Spatial latents of `num_frames` frames from posterior latents."""
        self.require_loaded()
        most = self.micro_frame_size or self.compression[0] * z.shape[2]  # frames that one clip may have
        clips = z.split(self.temporal_vae.latent_size((most, 1, 1))[0], dim=2)
        before = most * (len(clips) - 1)
        available = before + min(most, self.compression[0] * clips[-1].shape[2])
        left = before + self.temporal_vae.shortest(clips[-1].shape[2]) if num_frames is None else num_frames
        if left > available:
            raise ShapeError(
                f"OpenSoraVAE_V1_2: {left} frames requested of {z.shape[2]} latent frames, which hold at most {available}"
            )
        x_z = []
        for clip in clips[: -(-left // most)]:
            x_z.append(self.temporal_vae.decode_latents(clip, min(most, left)))
            left -= most
        return torch.cat(x_z, dim=2)

    def encode(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """Normalized latents, float32; rngs: one CPU generator per clip, None = the mode.

        Each generator is used twice: for the spatial latents of all frames, then for the latents.
        """
        return self.normalize(self.posterior(x_BCTHW, rngs).draw(rngs))

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Clips of `num_frames` frames, about in [-1, 1], float32, from normalized latents.

        num_frames: how many frames were encoded. None assumes the shortest clip with these latents; fewer frames are the
        first ones of that clip.
        """
        return self._decode(self.restore(z), num_frames)

    def forward(
        self, x: Tensor, rngs: Sequence[Generator] | None = None, reconstruct_latents: bool = False
    ) -> tuple[Tensor, Gaussian] | LatentReconstruction:
        """Reconstruction (float32) and posterior of unnormalized latents, for training both parts together.

        The spatial posterior is sampled but, as in the original, not regularized.
        reconstruct_latents: train the temporal part alone, to reconstruct the spatial latents.
        """
        if not reconstruct_latents:
            posterior = self.posterior(x, rngs)
            return self._decode(posterior.draw(rngs), x.shape[2]), posterior
        self.require_loaded()
        with torch.no_grad():  # otherwise the spatial part would learn latents that are easy to reconstruct
            x_z = self.spatial_vae.encode(x, rngs)
        posterior = self.temporal_posterior(x_z)
        z = posterior.draw(rngs)
        return LatentReconstruction(at_least_float32(self._decode_in_time(z, x.shape[2])), posterior, x_z, z)


def _chunk_lengths(frames: int, size: int | None) -> list[int]:
    """`frames` in chunks of at most `size`: their lengths."""
    whole, rest = divmod(frames, size or frames or 1)
    return [size or frames] * whole + ([rest] if rest else [])


def _build_part(kind: type[Part], name: str, arguments: Mapping[str, Any], **fixed: object) -> Part:
    known = [key for key in inspect.signature(kind).parameters if key not in fixed]
    for key in arguments:
        if key not in known:
            raise ConfigError(
                f"OpenSoraVAE_V1_2: {name}: unknown key {key!r}; allowed: {', '.join(known)} (of {kind.__name__})"
            )
    return kind(**arguments, **fixed)


def _config_without(config: Mapping[str, Any], without: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("type", *without)}
