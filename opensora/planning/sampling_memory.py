"""The memory of sampling, stage by stage, counted on the meta device; and the least change that makes it fit.

Counted: weights, the tensors of each stage, FRAMEWORK, and on a CPU the copies that oneDNN makes for a convolution. Not counted:
what an allocator loses, work space of a device's kernels, and the tensors that a `cache` of the run keeps. Several ranks that
share a video are counted as one.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder, Denoiser, Size, TextEncoder
from opensora.models.build import build_autoencoder, build_denoiser
from opensora.models.clip_conditioning import clip_conditioning
from opensora.models.frame_conditioning import frame_conditioning
from opensora.models.layers.clip_cache import ClipCache
from opensora.planning.meta_profile import profile_forward
from opensora.planning.text_encoder_size import text_parameters
from opensora.registry import VAES, constructor

TEXT, MODEL, VAE = "text encoder", "denoiser", "autoencoder"
NETWORK_OF = {"prompts": TEXT, "references": VAE, "denoising": MODEL, "decoding": VAE}
LOADING = "loading"  # on the host: networks are built and read in single precision, one after the other
# Libraries on a CPU (0.7 GB after the imports of a sampling run), context and work space on a device (assumed).
FRAMEWORK = 10**9
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def memory_size(value: str | int, where: str) -> int:
    """Bytes of "12GB" (10^9), "12GiB" (2^30) or a number of bytes. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(value), re.IGNORECASE)
    size = 0.0 if match is None or match[2].lower() not in _UNITS else float(match[1]) * _UNITS[match[2].lower()]
    if size < 1:
        raise ConfigError(f"{where}: found {value!r}; allowed: a size such as '12GB' or '11.5GiB', or bytes; change it")
    return int(size)


def size_text(size: float) -> str:
    """Bytes in GB (10^9)."""
    return f"{size / 1e9:.2f} GB"


@dataclass(frozen=True)
class Choice:
    """Settings that lower the memory of sampling."""

    offload: bool = False
    tiling: bool = False

    def __str__(self) -> str:
        words = ["model_cpu_offload=True"] * self.offload + ["vae.use_tiling=True"] * self.tiling
        return " ".join(words) or "nothing, all fits"


@dataclass(frozen=True)
class SamplingMemory:
    """The memory of one batch; `peaks` are estimates in bytes."""

    model: Mapping[str, Any]  # complete config
    vae: Mapping[str, Any]
    text_encoder: TextEncoder | None  # None: not loaded
    size: Size  # frames, height, width in pixels
    copies: int  # of the batch, for guidance
    dtype: torch.dtype
    references: bool = False  # clips are encoded
    on_host: bool = False  # the device is the host, which keeps the videos as well

    def peaks(self, choice: Choice) -> dict[str, int]:
        """By stage, in the order of sampling."""
        work = {**self._work, **(self._tiled_coding if choice.tiling else self._whole_coding)}
        everything = sum(self.weights.values())
        loading = {LOADING: FRAMEWORK + self._loading()} if self.on_host else {}
        return loading | {
            stage: FRAMEWORK + work[stage] + (self.weights[network] if choice.offload else everything)
            for stage, network in NETWORK_OF.items()
            if stage in work
        }

    def choices(self, choice: Choice) -> Iterator[Choice]:
        """`choice`, then those that change more: first the place of the networks, then the pixels."""
        offloads = [choice.offload] if choice.offload or self.on_host else [False, True]
        tilings = [choice.tiling] if choice.tiling or not self.can_tile else [False, True]
        for tiling in tilings:
            for offload in offloads:
                yield Choice(offload, tiling)

    @cached_property
    def can_tile(self) -> bool:
        """True if the autoencoder has tiles that are off."""
        if "use_tiling" not in inspect.signature(constructor(VAES, self.vae["type"])).parameters:
            return False
        try:
            self._autoencoder(tiling=True)
        except ConfigError:  # one that has the key and refuses it
            return False
        return True

    @cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of each network; 0 for a text encoder of unknown size."""
        text = None if self.text_encoder is None else text_parameters(self.text_encoder)
        text_bytes = (text or (0,))[0] * self.dtype.itemsize
        return {TEXT: text_bytes, MODEL: _bytes(self._denoiser), VAE: _bytes(self._autoencoder(tiling=False))}

    def _loading(self) -> int:
        """Peak bytes of weights while the networks are read, in the order of sampling/build.py."""
        single = torch.float32.itemsize // self.dtype.itemsize
        ready = peak = 0
        for network in (MODEL, TEXT, VAE):
            peak = max(peak, ready + single * self.weights[network])
            ready += self.weights[network]
        return peak

    @property
    def knows_text(self) -> bool:
        """False for a text encoder of unknown size."""
        return self.text_encoder is None or text_parameters(self.text_encoder) is not None

    @cached_property
    def _denoiser(self) -> Denoiser:
        with torch.device("meta"):
            return build_denoiser(self.model).to(self.dtype).eval()

    def _autoencoder(self, tiling: bool) -> Autoencoder:
        config = {**self.vae, "use_tiling": True} if tiling else self.vae
        with torch.device("meta"):
            vae = build_autoencoder(config).to(self.dtype).eval()
        for module in vae.modules():
            if hasattr(module, "blend_v"):  # diffusers' tiles: row by row, in place
                module.blend_v = module.blend_h = _joined  # type: ignore[assignment]
            if self.on_host and isinstance(module, (nn.Conv2d, nn.Conv3d)):
                module.register_forward_hook(_copy_both_sides)
        return vae

    @cached_property
    def _work(self) -> dict[str, int]:
        """Bytes besides the weights, of the stages that tiles do not change."""
        model, encoder = self._denoiser, self.text_encoder
        work = {"denoising": self._denoising(model)}
        if encoder is not None and hasattr(encoder, "max_tokens"):
            work["prompts"] = _text_bytes(encoder.max_tokens, model.caption_channels) * self.dtype.itemsize // 2
        return work

    def _denoising(self, model: Denoiser) -> int:
        with torch.device("meta"):
            vae = self._autoencoder(tiling=False)
            x = torch.empty(self.copies, vae.latent_channels, *vae.latent_size(self.size))
            text = _text(model, self.copies, self.dtype)  # without a mask: as if every token counted
            kwargs: dict[str, Any] = clip_conditioning(model, self.size, torch.empty(self.copies))
            if model.conditioned:
                y_null = model.null_text(self.copies)
                assert y_null is not None  # conditioned models have a null caption
                kwargs |= frame_conditioning(torch.empty_like(x), [[]] * self.copies, y_null.to(text))
            elif self.references and model.takes_x_mask:
                kwargs["x_mask"] = torch.ones(self.copies, x.shape[2], dtype=torch.bool)
            cache = ClipCache()  # keeps what the steps share
            peak, _ = profile_forward(
                lambda: model(x, torch.empty(self.copies), text, clip_cache=cache, **kwargs), model
            )
        return peak + 3 * x.nbytes + text.nbytes  # the scheduler has noise, latents and the last answer

    @cached_property
    def _whole_coding(self) -> dict[str, int]:
        return self._coding(tiling=False)

    @cached_property
    def _tiled_coding(self) -> dict[str, int]:
        return self._coding(tiling=True)

    def _coding(self, tiling: bool) -> dict[str, int]:
        work = {}
        with torch.device("meta"):
            vae = self._autoencoder(tiling)
            z = torch.empty(1, vae.latent_channels, *vae.latent_size(self.size))
            work["decoding"] = profile_forward(lambda: self._decode(vae, z), vae)[0] + z.nbytes
            if self.references:
                video = torch.empty(1, vae.in_channels, *self.size, dtype=self.dtype)
                work["references"] = profile_forward(lambda: vae.encode(video), vae)[0] + video.nbytes
        return work

    def _decode(self, vae: Autoencoder, z: Tensor) -> None:
        windows = vae.decode_windows(z, self.size[0])
        if self.on_host:
            torch.cat([window.float() for window in windows], dim=2)
            return
        for window in windows:
            window.float()
            del window  # it leaves the device


def choose(memory: SamplingMemory, limit: int, choice: Choice) -> tuple[Choice, dict[str, int]]:
    """The first of `memory.choices` that fits into `limit` bytes, and its peaks. Raises ConfigError when none does."""
    tried = []
    for each in memory.choices(choice):
        peaks = memory.peaks(each)
        if max(peaks.values()) <= limit:
            return each, peaks
        tried.append(peaks)
    least = min(tried, key=lambda peaks: max(peaks.values()))
    stage = max(least, key=least.__getitem__)
    raise ConfigError(
        f"key 'max_memory': found {size_text(limit)}; needed: {size_text(max(least.values()))}, while {stage_words(stage)}, "
        f"with all that lowers memory{_left_out(memory)}; allowed: that or more; or sample fewer frames or a smaller size"
        + (", or in dtype='bf16'" if memory.dtype is torch.float32 else "")
    )


def summary(memory: SamplingMemory, limit: int, choice: Choice, peaks: Mapping[str, int]) -> str:
    """The estimate and the choice in one sentence."""
    stages = ", ".join(f"{stage} {size_text(size)}" for stage, size in peaks.items())
    unknown = "" if memory.knows_text else "; not counted: the text encoder, whose size is unknown"
    return f"max_memory {size_text(limit)}: estimated {stages}; chosen: {choice}{_left_out(memory)}{unknown}"


def stage_words(stage: str) -> str:
    """A stage as a clause of a sentence."""
    return {
        LOADING: "weights are read, in single precision first",
        "prompts": "prompts are encoded",
        "references": "references are encoded",
        "denoising": "videos are denoised",
        "decoding": "videos are decoded",
    }[stage]


def _left_out(memory: SamplingMemory) -> str:
    return " (not model_cpu_offload: the device is the host)" if memory.on_host else ""


def _copy_both_sides(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Hold for a moment what oneDNN holds during a convolution: input and output in its own layout, measured as if in
    single precision whatever the tensors have."""
    torch.empty(inputs[0].numel() + output.numel(), dtype=torch.float32, device="meta")


def _joined(before: Tensor, tile: Tensor, extent: int) -> Tensor:
    return tile


def _bytes(module: nn.Module) -> int:
    return sum(each.nbytes for each in (*module.parameters(), *module.buffers()))


def _text(model: Denoiser, n: int, dtype: torch.dtype) -> Tensor:
    """The text encoder's output for n captions."""
    if model.num_classes is not None:
        return torch.zeros(n, dtype=torch.long)
    return torch.empty(n, 1, model.model_max_length, model.caption_channels, dtype=dtype)


def _text_bytes(tokens: int, width: int) -> int:
    """Bytes that one caption takes in a layer, in half precision: 18 states per token, and scores of heads of 64."""
    return 2 * (18 * tokens * width + 2 * max(1, width // 64) * tokens**2)
