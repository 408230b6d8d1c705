"""Diffusers' autoencoders for videos.

VideoAutoencoderKL applies an image autoencoder to each frame, as in Open-Sora 1.0 and 1.1. The decoder of
VideoAutoencoderKLTemporalDecoder (Stable Video Diffusion) mixes neighboring frames.

Shapes: B batch, C latent channels, T H W frames/rows/columns, lower case the latent ones.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Generator, Tensor, nn

from opensora.errors import ConfigError, WeightsError
from opensora.files import expand_home
from opensora.interfaces import Size
from opensora.models.layers.conv import replace_convolutions
from opensora.models.layers.patch import at_least_float32
from opensora.models.layers.seam import TileMap
from opensora.models.read_weights import explain_unreadable
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.base import VideoAutoencoder
from opensora.models.vae.gaussian import Gaussian, LatentScale
from opensora.models.vae.hub_folder import as_list, check_micro_batch_size, merge_stored_config
from opensora.models.weights import CONFIG_FILE, check_values, load_weights, read_config, require_kind
from opensora.registry import VAES

# Keys of diffusers' config that do not change the layers.
COUNTS = {
    "block_out_channels", "latent_channels", "layers_per_block", "norm_num_groups", "in_channels", "out_channels"
}  # fmt: skip
NO_LAYOUT = ("sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")


@VAES.register_module()
class VideoAutoencoderKL(VideoAutoencoder):
    """diffusers' AutoencoderKL on each frame. Keys are diffusers' under `module.`.

    Building reads config.json only, `load()` the weights.
    """

    def __init__(
        self,
        from_pretrained: str | None = None,  # folder in diffusers' layout or written by save_weights, or a hub id
        config: dict[str, Any] | None = None,  # arguments of diffusers' class, to build without a folder or the hub
        subfolder: str | None = None,  # of from_pretrained
        micro_batch_size: int | None = None,  # frames coded at a time; None = all, with tiles 1
        # Code frames in tiles of the sample_size in diffusers' config; neighbors overlap and are blended.
        use_tiling: bool = False,
        # Diffusion works on (z - shift) * scale. The factor in diffusers' config is ignored: Open-Sora uses 0.18215 always.
        scaling_factor: float = 0.18215,  # the scale, unless latent_scale is given
        latent_shift: Sequence[float] | None = None,  # one number per latent channel
        latent_scale: Sequence[float] | None = None,  # one number per latent channel
    ):
        arguments: dict[str, Any] = {
            "config": config,
            "micro_batch_size": micro_batch_size,
            "use_tiling": use_tiling,
            "scaling_factor": scaling_factor,
            "latent_shift": latent_shift,
            "latent_scale": latent_scale,
        }
        super().__init__()
        from_pretrained = None if from_pretrained is None else expand_home(from_pretrained)
        self.from_pretrained, self.subfolder = from_pretrained, subfolder
        if from_pretrained is None and config is None:
            raise ConfigError(f"{self._name}: neither from_pretrained nor config is given; give one of them")
        self._refuse_unknown(config or {})
        self.own_export = self._is_own_export()
        if from_pretrained is not None and self._folder().exists():
            require_kind(self._folder(), VAES, "key 'vae.from_pretrained'")
        if from_pretrained is not None and (config is None or self._folder().exists()):
            stored = read_config(self._folder()) if self.own_export else {"config": self._released_config()}
            stored["config"] = {key: value for key, value in stored["config"].items() if key in self._known()}
            self._require_agreement(config or {}, stored["config"])
            arguments = merge_stored_config(type(self), {**arguments, "config": None}, stored, from_pretrained)
        assert isinstance(arguments["config"], dict)
        self.module = self._build(arguments["config"])
        replace_convolutions(self.module)
        self.module.to(torch.empty(0).device)  # diffusers makes some factors by a call that ignores torch.device(...)
        self.config: dict[str, Any] = {"type": self._name, **arguments}  # rebuilds this without a folder
        self.micro_batch_size = check_micro_batch_size(self._name, arguments["micro_batch_size"])
        if arguments["use_tiling"]:
            self._enable_tiling()
        self.tile_map = TileMap()
        self.latents = LatentScale(arguments["scaling_factor"], arguments["latent_shift"], arguments["latent_scale"])
        self.in_channels: int = self.module.config.in_channels
        self.latent_channels: int = self.module.config.latent_channels
        factor = 2 ** (len(self.module.config.block_out_channels) - 1)
        self.compression = (1, factor, factor)

    @staticmethod
    def _wrapped_class() -> type[Any]:
        """The diffusers class that `module` is an instance of."""
        from diffusers import AutoencoderKL

        return AutoencoderKL

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _enable_tiling(self) -> None:
        self.module.enable_tiling()
        self.micro_batch_size = self.micro_batch_size or 1

    def _folder(self) -> Path:
        return Path(str(self.from_pretrained)) / (self.subfolder or "")

    def _is_own_export(self) -> bool:
        if self.from_pretrained is None or not (self._folder() / CONFIG_FILE).is_file():
            return False
        return isinstance(read_config(self._folder()).get("config"), dict)

    def _released_config(self) -> dict[str, Any]:
        if Path(str(self.from_pretrained)).is_absolute() and not self._folder().exists():
            raise WeightsError(  # an absolute path is no hub id: a request would only take time
                f"{self._name}: {self._folder()}: no such folder; allowed: a folder with config.json or a hub id"
            )
        try:
            return self._wrapped_class().load_config(self.from_pretrained, subfolder=self.subfolder)
        except OSError as error:
            raise WeightsError(
                f"{self._name}: {self.from_pretrained}: no diffusers config.json found ({error}); "
                "give a folder that holds one, or a hub id while the hub can be reached"
            ) from error

    def _known(self) -> dict[str, Any]:
        """Arguments of diffusers' class, and their defaults."""
        parameters = inspect.signature(self._wrapped_class().__init__).parameters
        return {name: each.default for name, each in parameters.items() if name != "self"}

    def _refuse_unknown(self, config: Mapping[str, Any]) -> None:
        """Raise ConfigError for keys that diffusers would ignore."""
        known = self._known()
        for key in config:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"{self._name}: config: unknown key {key!r}; nearest: {nearest!r}; allowed: {', '.join(known)}; correct it"
                )

    def _require_agreement(self, config: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
        """Raise ConfigError where `config` describes other layers than the folder holds weights for."""
        layout = {**self._known(), **stored}
        for key, value in config.items():
            if key in layout and key not in NO_LAYOUT and as_list(value) != as_list(layout[key]):
                raise ConfigError(
                    f"{self._name}: config.{key}={value!r}, but {self._folder()} holds weights for {layout[key]!r}; leave config"
                    " out or give another from_pretrained"
                )

    def _build(self, config: dict[str, Any]) -> Any:
        """Diffusers' autoencoder. Raises ConfigError for a config that it does not take."""
        where = f"{self._name}: config"
        for key in COUNTS & config.keys():
            several = key == "block_out_channels"
            counts = as_list(config[key]) if several else [config[key]]
            if not isinstance(counts, list) or not all(type(n) is int and n >= 1 for n in counts):
                kind = "a list of whole numbers" if several and not isinstance(counts, list) else "whole numbers"
                raise ConfigError(f"{where}.{key}: {config[key]!r}; allowed: {kind} from 1; correct it")
        full = {**self._known(), **config}
        levels = len(full["block_out_channels"])
        for key in ("down_block_types", "up_block_types"):
            if key in full and len(full[key]) != levels:
                raise ConfigError(
                    f"{where}: block_out_channels has {levels} levels, {key} {len(full[key])}; give one per level"
                )
        try:
            return self._wrapped_class().from_config(config)
        except (ValueError, TypeError, LookupError) as error:
            raise ConfigError(
                f"{where}: diffusers' {self._wrapped_class().__name__} cannot be built of {config} ({error}); correct it"
            ) from error

    def load(self) -> Self:
        """Read the weights of `from_pretrained`; without one the initial weights stay. Raises WeightsError."""
        if self.own_export:
            load_weights(self, self._folder())
        elif self.from_pretrained is not None:
            try:  # by diffusers, which renames the attention keys of old files; low_cpu_mem_usage needs `accelerate`
                read = self._wrapped_class().from_pretrained(
                    self.from_pretrained, subfolder=self.subfolder, low_cpu_mem_usage=False
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                reason = explain_unreadable(self._folder()) if self._folder().is_dir() else ""
                raise WeightsError(
                    reason or f"{self._name}: {self.from_pretrained} cannot be read ({error}); copy the folder again"
                ) from error
            on_meta = any(p.is_meta for p in self.parameters())
            state = read.state_dict()
            check_values(state, self.module.state_dict(), str(self._folder()))
            self.module.load_state_dict(state, assign=on_meta)
            self.loaded = True
        return self

    @property
    def last_layer(self) -> nn.Parameter:
        return self.module.decoder.conv_out.weight

    def checkpoint_blocks(self) -> list[nn.Module]:
        encoder, decoder = self.module.encoder, self.module.decoder
        return [*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks]

    def latent_size(self, size: Size) -> Size:
        t, h, w = size
        return t, h // self.compression[1], w // self.compression[2]

    def _by_frames(self, coder: Callable[[Tensor], Tensor], x_BCTHW: Tensor) -> Tensor:
        """Apply `coder` to every frame, `micro_batch_size` frames at a time."""
        self.require_loaded()
        frames = x_BCTHW.to(self.last_layer.dtype).transpose(1, 2).flatten(0, 1)
        coded = torch.cat([*self.tile_map(coder, frames.split(self.micro_batch_size or len(frames)))])
        return coded.unflatten(0, (len(x_BCTHW), -1)).transpose(1, 2)

    def posterior(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Gaussian:
        if x_BCTHW.shape[1] != self.in_channels:
            raise ShapeError(f"{self._name}: {x_BCTHW.shape[1]} channels; {self.in_channels} are needed")
        moments = self._by_frames(lambda part: self.module.encode(part).latent_dist.parameters, x_BCTHW)
        return Gaussian.from_moments(moments)

    def _decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        return at_least_float32(self._by_frames(lambda part: self.module.decode(part).sample, z[:, :, :num_frames]))

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Clips of about [-1, 1], float32, from latents as `encode` gives them; the first `num_frames` frames."""
        if num_frames is not None and num_frames > z.shape[2]:
            raise ShapeError(f"{self._name}: {num_frames} frames requested of {z.shape[2]} latent frames")
        return self._decode(self.latents.restore(z), num_frames)

    def forward(self, x: Tensor, rngs: Sequence[Generator] | None = None) -> tuple[Tensor, Gaussian]:
        """Reconstruction (float32) and posterior."""
        posterior = self.posterior(x)
        return self._decode(posterior.draw(rngs)), posterior


@VAES.register_module()
class VideoAutoencoderKLTemporalDecoder(VideoAutoencoderKL):
    """Encodes each frame alone and decodes the frames of a clip together.

    Arguments as above, with `config` for diffusers' AutoencoderKLTemporalDecoder. micro_batch_size also limits the frames
    that are decoded together: groups do not see each other, so their borders show in the result.
    """

    @staticmethod
    def _wrapped_class() -> type[Any]:
        from diffusers import AutoencoderKLTemporalDecoder

        return AutoencoderKLTemporalDecoder

    def _enable_tiling(self) -> None:
        raise ConfigError(
            f"{self._name}: use_tiling: found True; allowed: False, its decoder has no tiles; micro_batch_size=N codes N frames "
            "at a time"
        )

    @property
    def last_layer(self) -> nn.Parameter:
        return self.module.decoder.time_conv_out.weight

    def _decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        self.require_loaded()
        groups = z.to(self.last_layer.dtype).split(self.micro_batch_size or z.shape[2], dim=2)
        decoded = list(self.tile_map(self._decode_group, groups))
        return torch.cat(decoded, dim=2)[:, :, :num_frames]  # cropped last: earlier frames depend on later ones

    def _decode_group(self, z: Tensor) -> Tensor:
        frames = self.module.decode(z.transpose(1, 2).flatten(0, 1), num_frames=z.shape[2]).sample
        return at_least_float32(frames.unflatten(0, (len(z), -1)).transpose(1, 2))
