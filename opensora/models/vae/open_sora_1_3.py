"""OpenSoraVAE_V1_3: the causal video autoencoder of Open-Sora 1.3, 4x8x8 with 16 latent channels as released.

Shapes: B batch, C latent channels, T H W frames/rows/columns, lower case the latent ones.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from opensora.errors import ConfigError
from opensora.interfaces import Size
from opensora.models.layers.patch import at_least_float32
from opensora.models.layers.seam import TileMap
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.base import VideoAutoencoder
from opensora.models.vae.gaussian import Gaussian, LatentScale
from opensora.models.vae.hub_folder import check_micro_batch_size, fetch_folder, merge_stored_config, read_stored_config
from opensora.models.vae.open_sora_1_3_net import Decoder, Encoder
from opensora.models.weights import load_weights
from opensora.registry import VAES

# Mean and deviation per channel of the released autoencoder's latents of videos: diffusion works on (z - mean) / deviation.
VIDEO_MEAN = (
    -0.19016949832439423, -0.04480062797665596, 0.020789705216884613, 0.01865335740149021,
    -0.011585569009184837, 0.0010865575168281794, 0.08378933370113373, 0.08902134001255035,
    0.00940945465117693, 0.08086848258972168, -0.07251627743244171, 0.05052144080400467,
    -0.0209724809974432, -0.1223079189658165, -0.003862356534227729, -0.023072388023138046,
)  # fmt: skip
VIDEO_STD = (
    0.9490776062011719, 0.9594117999076843, 0.9444302916526794, 0.9103284478187561,
    0.959351658821106, 0.8430351614952087, 0.8888124823570251, 0.9291136860847473,
    0.972594141960144, 0.8917953968048096, 0.8630853891372681, 0.8279891610145569,
    0.9114300012588501, 0.7922844886779785, 0.8991407155990601, 0.9473513960838318,
)  # fmt: skip
VIDEO_SCALE = tuple(1 / deviation for deviation in VIDEO_STD)


@VAES.register_module()
class OpenSoraVAE_V1_3(VideoAutoencoder):
    """The defaults are the released layout. Building reads config.json only, `load()` the weights."""

    in_channels = 3

    def __init__(
        self,
        from_pretrained: str | None = None,  # folder with config.json and weights; or a hub id of the layout given here
        hidden_size: int = 128,  # channels of the finest level
        hidden_size_mult: Sequence[int] = (1, 2, 4, 4),  # channels per level / hidden_size, the finest first
        num_res_blocks: int = 2,  # per level; the decoder has one more
        z_channels: int = 16,  # latent channels
        down_sampling_layer: Sequence[int] = (
            1,
            2,
        ),  # levels that halve frames too; all but the last halve rows, columns
        temporal_up_layers: Sequence[int] = (2, 3),  # levels of the decoder that double frames too
        norm_groups: int = 32,  # of every GroupNorm
        micro_batch_size: int | None = None,  # clips coded at a time; None = all
        micro_frame_size: int | None = None,  # frames coded at a time, 4 k + 1; None = all; needs a micro_batch_size
        temporal_overlap: bool = False,  # these chunks share a frame, decoded as the mean of both
        # Diffusion works on (z - shift) * scale. The defaults are the statistics of videos; those of images differ, but the
        # released models do not use them.
        scaling_factor: float = 1.0,  # the scale where latent_scale is None
        latent_shift: Sequence[float] | None = VIDEO_MEAN,  # one number per latent channel
        latent_scale: Sequence[float] | None = VIDEO_SCALE,  # one number per latent channel
    ):
        arguments = {
            key: value for key, value in locals().items() if key not in ("self", "__class__", "from_pretrained")
        }
        super().__init__()
        if from_pretrained is not None:
            arguments = merge_stored_config(type(self), arguments, read_stored_config(from_pretrained), from_pretrained)
        self.from_pretrained = from_pretrained
        self.config: dict[str, Any] = {"type": "OpenSoraVAE_V1_3", **arguments}
        self._build(**arguments)

    def _build(self, **config: Any) -> None:
        widths = [config["hidden_size"] * factor for factor in config["hidden_size_mult"]]
        resnets, groups, z = config["num_res_blocks"], config["norm_groups"], config["z_channels"]
        down, up = sorted(config["down_sampling_layer"]), sorted(config["temporal_up_layers"])
        last = len(widths) - 1
        if not set(down) <= set(range(last)) or not set(up) <= set(range(1, last + 1)) or len(down) != len(up):
            raise ConfigError(
                f"OpenSoraVAE_V1_3: down_sampling_layer={down}, temporal_up_layers={up}; allowed: equally many levels in both, "
                f"of 0 to {last - 1} and of 1 to {last} for {last + 1} levels"
            )
        for width in widths:
            if width % groups:
                raise ConfigError(
                    f"OpenSoraVAE_V1_3: {width} channels (hidden_size times hidden_size_mult) do not fall into "
                    f"norm_groups={groups} equal groups; choose norm_groups that divides every width"
                )
        self.encoder = Encoder(2 * z, widths, resnets, down, groups)
        self.decoder = Decoder(z, widths, resnets + 1, up, groups)
        self.latent_channels: int = z
        self.compression = (2 ** len(down), 2**last, 2**last)
        self._in_time = down
        self.tile_map = TileMap()
        self.micro_batch_size = check_micro_batch_size("OpenSoraVAE_V1_3", config["micro_batch_size"])
        self.micro_frame_size: int | None = config["micro_frame_size"]
        self.temporal_overlap: bool = config["temporal_overlap"]
        self.latents = LatentScale(config["scaling_factor"], config["latent_shift"], config["latent_scale"])
        self._check_chunks()

    def _check_chunks(self) -> None:
        size, factor = self.micro_frame_size, self.compression[0]
        if size is None:
            if self.temporal_overlap:
                raise ConfigError(
                    "OpenSoraVAE_V1_3: temporal_overlap without micro_frame_size; give a micro_frame_size"
                )
            return
        if self.micro_batch_size is None:
            raise ConfigError(
                "OpenSoraVAE_V1_3: micro_frame_size without micro_batch_size; give micro_batch_size as well (the "
                "original codes the clip whole without it)"
            )
        if size <= factor or (size - 1) % factor:
            raise ConfigError(
                f"OpenSoraVAE_V1_3: micro_frame_size: {size}; allowed: {factor} k + 1 with k of at least 1, for example "
                f"{max(1, size // factor) * factor + 1}"
            )

    def load(self) -> Self:
        """Read the weights of `from_pretrained`; without one the initial weights stay. Raises WeightsError."""
        if self.from_pretrained is not None:
            load_weights(self, fetch_folder(self.from_pretrained))
        return self

    @property
    def last_layer(self) -> nn.Parameter:
        weight = self.decoder.conv_out.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def checkpoint_blocks(self) -> list[nn.Module]:
        return [*self.encoder.down, self.encoder.mid, self.decoder.mid, *self.decoder.up]

    def latent_size(self, size: Size) -> Size:
        """(frames, rows, columns) in pixels -> the same of the latents.

        With a micro_frame_size, frames of a last chunk that decoding could not restore are not counted; `encode` raises
        a ShapeError for them.
        """
        frames, *sides = size
        for i in range(len(self.decoder.up) - 1):
            # levels that keep the frames pad right and below only; the others pad every side
            sides = [(n + 1) // 2 if i in self._in_time else n // 2 for n in sides]
        chunks = self._chunks(frames)
        if self.micro_frame_size is not None:
            chunks = [chunk for chunk in chunks if self._restorable(chunk)]
        return sum(map(self._latent_frames, chunks)), sides[0], sides[1]

    def holds_frames(self, num_frames: int) -> bool:
        return all(map(self._restorable, self._chunks(num_frames)))

    def _chunks(self, frames: int) -> list[range]:
        """Frame ranges that are coded together."""
        size = self.micro_frame_size
        if size is None or frames == 1:
            return [range(frames)]
        shared = 1 if self.temporal_overlap else 0
        return [range(start, min(start + size, frames)) for start in range(0, frames - shared, size - shared)]

    def _latent_frames(self, chunk: range) -> int:
        frames = len(chunk)
        for _ in self._in_time:
            frames = (frames - 1) // 2 + 1
        return frames

    def _restorable(self, chunk: range) -> bool:
        """True if decoding returns all encoded frames."""
        return len(chunk) % self.compression[0] == 1 % self.compression[0]

    def posterior(self, x_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Gaussian:
        self.require_loaded()
        factor = self.compression[1]
        if x_BCTHW.shape[1] != self.in_channels or min(x_BCTHW.shape[3:]) < factor:
            raise ShapeError(
                f"OpenSoraVAE_V1_3: clips of {list(x_BCTHW.shape[1:])} (channels, frames, rows, columns); needed: "
                f"{self.in_channels} channels and at least {factor} rows and columns"
            )
        chunks = self._chunks(x_BCTHW.shape[2])
        if self.micro_frame_size is not None and not self._restorable(chunks[-1]):
            raise ShapeError(
                f"OpenSoraVAE_V1_3: clips of {x_BCTHW.shape[2]} frames leave a last chunk of {len(chunks[-1])} after chunks "
                f"of {self.micro_frame_size}; give a number of frames that leaves {self.compression[0]} k + 1, for example "
                f"{chunks[-1].start + len(chunks[-1]) // self.compression[0] * self.compression[0] + 1}"
            )
        moments = [
            torch.cat([self.encoder(clips[:, :, chunk.start : chunk.stop]) for chunk in chunks], dim=2)
            for clips in x_BCTHW.to(self.last_layer.dtype).split(self.micro_batch_size or len(x_BCTHW))
        ]
        return Gaussian.from_moments(torch.cat(moments))

    def _decode(self, z: Tensor) -> Tensor:
        self.require_loaded()
        z = z.to(self.last_layer.dtype)
        size = self.micro_frame_size
        group = z.shape[2] if size is None else self._latent_frames(range(size))
        decoded = []
        for clips in z.split(self.micro_batch_size or len(z)):
            chunks = list(self.tile_map(lambda part: at_least_float32(self.decoder(part)), clips.split(group, dim=2)))
            decoded.append(_join(chunks, self.temporal_overlap))
        return torch.cat(decoded)

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Clips float32, about in [-1, 1], from normalized latents; the first `num_frames` frames."""
        x = self._decode(self.latents.restore(z))
        if num_frames is not None and num_frames > x.shape[2]:
            raise ShapeError(
                f"OpenSoraVAE_V1_3: {num_frames} frames requested of {z.shape[2]} latent frames, which hold {x.shape[2]}"
            )
        return x[:, :, :num_frames]

    def forward(self, x: Tensor, rngs: Sequence[Generator] | None = None) -> tuple[Tensor, Gaussian]:
        """Reconstruction (float32) and posterior. Raises ShapeError for sizes that would lose frames, rows or columns."""
        posterior = self.posterior(x)
        output = self._decode(posterior.draw(rngs))
        if output.shape != x.shape:
            time, side = self.compression[:2]
            raise ShapeError(
                f"OpenSoraVAE_V1_3: clips of {list(x.shape[2:])} come back as {list(output.shape[2:])}; give {time} k + 1 "
                f"frames, rows and columns that are multiples of {side}"
            )
        return output, posterior


def _join(chunks: Sequence[Tensor], overlap: bool) -> Tensor:
    """Concatenate chunks in time; with `overlap` each starts on the last frame of the one before."""
    if overlap:
        chunks = list(chunks)
        for i in range(1, len(chunks)):
            shared = (chunks[i - 1][:, :, -1:] + chunks[i][:, :, :1]) / 2
            chunks[i - 1] = torch.cat([chunks[i - 1][:, :, :-1], shared], dim=2)
            chunks[i] = chunks[i][:, :, 1:]
    return torch.cat(list(chunks), dim=2)
