"""Codec: videos to latents and captions to token states, and latents back to videos. Both networks are frozen.

Shapes: B batch, C channels, T H W frames, rows, columns; L tokens. Videos lie in [-1, 1].
"""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Generator, Tensor, nn

from opensora.types import Condition

CACHE_BYTES = 256 * 2**20


class TextEncoder(Protocol):
    """What is registered in TEXT_ENCODERS."""

    @property
    def denoiser_args(self) -> dict[str, Any]:
        """Arguments of a denoiser that takes what `encode` gives: its `condition`, and the sizes of a caption."""

    def load(self) -> Self: ...

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self: ...

    def encode(self, captions: Sequence[str]) -> Condition: ...


class Codec:
    """The autoencoder and the text encoder that stand around a denoiser, on one device and in one type.

    cache_bytes: how much of the host's memory encoded captions may take; the least recently used ones go first.
        0 keeps none.
    """

    def __init__(
        self,
        vae: nn.Module,
        text_encoder: TextEncoder,
        device: torch.device | str,
        dtype: torch.dtype,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.vae: Any = vae.to(device=device, dtype=dtype).eval().requires_grad_(False)  # one of VAES
        self.text_encoder = text_encoder.to(device, dtype)
        self.device = torch.device(device)
        self.dtype = dtype
        self.captions = CaptionCache(cache_bytes)
        # What stands in for the autoencoder and has no weights draws from stored moments, which keep their precision.
        self._video_dtype = next((parameter.dtype for parameter in self.vae.parameters()), torch.float32)

    @torch.no_grad()
    def encode_video(self, video_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """Normalised latents [B, C, t, h, w], float32. rngs: one per sample to draw from the posterior; None = mode."""
        return self.vae.encode(video_BCTHW.to(self.device, self._video_dtype), rngs).float()

    @torch.no_grad()
    def encode_moments(self, video_BCTHW: Tensor, rngs: Sequence[Generator]) -> Tensor:
        """Mean, then deviation, of the normalised latents on channels: float32 [B, 2 C, t, h, w], for `draw_latents`.

        rngs: one per sample, for an autoencoder whose posterior depends on a draw of its own (OpenSoraVAE_V1_2's on the
        spatial latents): it is made here, once for all epochs.
        """
        drawn = {"rngs": rngs} if "rngs" in inspect.signature(self.vae.posterior).parameters else {}
        posterior = self.vae.posterior(video_BCTHW.to(self.device, self._video_dtype), **drawn)
        normalise = self.vae.normalise if hasattr(self.vae, "normalise") else self.vae.latents.normalise
        ones = torch.ones_like(posterior.mean)
        deviation = (0.5 * posterior.logvar).exp() * (
            normalise(ones) - normalise(0 * ones)
        )  # the scale of each channel
        return torch.cat([normalise(posterior.mean), deviation], dim=1).float()

    @torch.no_grad()
    def decode_video(self, z_BCTHW: Tensor, num_frames: int | None = None) -> Tensor:
        """Videos [B, 3, T, H, W] on the CPU, float32, about in [-1, 1]; num_frames: how many there were before encoding.

        An autoencoder that decodes in windows has each taken off the device before the next is made.
        """
        z_BCTHW = z_BCTHW.to(self.device)  # scaled back in float32, then cast
        if hasattr(self.vae, "decode_windows"):
            return torch.cat([window.float().cpu() for window in self.vae.decode_windows(z_BCTHW, num_frames)], dim=2)
        return self.vae.decode(z_BCTHW, num_frames).float().cpu()

    def encode_text(self, captions: Sequence[str]) -> Condition:
        """Token states [B, 1, L, C] in the codec's type and mask [B, L], or class labels [B], on the device.

        Each caption is encoded alone: its numbers never depend on its neighbours, so a resumed run, whose cache starts
        empty, sees the same bits.
        """
        encoded: dict[str, Condition] = {}
        for caption in captions:
            if (held := self.captions.get(caption)) is not None:
                encoded[caption] = held
        missing = [caption for caption in dict.fromkeys(captions) if caption not in encoded]
        encoded |= zip(missing, self.encode_captions(missing), strict=True)
        rows = [encoded[caption] for caption in captions]
        masks = [row.mask_BL for row in rows if row.mask_BL is not None]
        return Condition(
            torch.cat([row.text_B1LC for row in rows]).to(self.device),
            torch.cat(masks).to(self.device) if masks else None,
        )

    def encode_captions(self, captions: Sequence[str]) -> list[Condition]:
        """What each of these captions gives by itself, on the host; they are kept from now on."""
        return [self._encode_caption(caption) for caption in captions]

    def _encode_caption(self, caption: str) -> Condition:
        condition = self.text_encoder.encode([caption])
        text, mask_1L = condition.text_B1LC.cpu(), condition.mask_BL
        if text.is_floating_point():  # class labels stay whole
            text = text.to(self.dtype)
        on_host = Condition(text, None if mask_1L is None else mask_1L.cpu())
        self.captions.put(caption, on_host)
        return on_host


def draw_latents(moments_BCTHW: Tensor, rngs: Sequence[Generator] | None) -> Tensor:
    """What `encode_video` gives, from what `encode_moments` gave."""
    mean, deviation = moments_BCTHW.float().chunk(2, dim=1)
    if rngs is None:
        return mean
    noise = torch.stack([torch.randn(mean.shape[1:], generator=rng) for rng in rngs])  # the numbers of Gaussian.draw
    return mean + deviation * noise.to(mean.device)


class CaptionCache:
    """Encoded captions by caption, at most `limit` bytes of them, the least recently used dropped first."""

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0  # bytes held now
        self._held: OrderedDict[str, Condition] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, caption: str) -> Condition | None:
        if caption in self._held:
            self._held.move_to_end(caption)
        return self._held.get(caption)

    def put(self, caption: str, condition: Condition) -> None:
        if condition_bytes(condition) > self.limit:
            return
        replaced = self._held.pop(caption, None)
        self.size += condition_bytes(condition) - (condition_bytes(replaced) if replaced else 0)
        self._held[caption] = condition
        while self.size > self.limit:
            self.size -= condition_bytes(self._held.popitem(last=False)[1])


def condition_bytes(condition: Condition) -> int:
    """Memory that the tensors of a condition take."""
    return condition.text_B1LC.nbytes + (0 if condition.mask_BL is None else condition.mask_BL.nbytes)
