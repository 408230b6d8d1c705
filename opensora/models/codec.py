"""Codec: videos to latents and captions to token states, and latents back to videos. Both networks are frozen.

Shapes: B batch, C channels, T H W frames, rows, columns; L tokens. Videos lie in [-1, 1].
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor

from opensora.interfaces import Autoencoder, TextEncoder
from opensora.models.offload import HOST, Offload
from opensora.types import EncodedText

CACHE_BYTES = 256 * 2**20
T = TypeVar("T")


def call(function: Callable[[], T]) -> T:
    """Return what `function` returns."""
    return function()


class Codec:
    """The autoencoder and the text encoder of a denoiser, on one device and in one type.

    cache_bytes: host memory for encoded captions; the least recently used ones are dropped first. 0 keeps none.
    run_on_leader: calls a function on the first rank of a sequence group and returns its result on every rank of it. Only
        encoding goes through it; each rank decodes for itself.
    max_over_text_ranks: the largest of the numbers that the ranks pass in. Given where ranks hold the text encoder
        together: each rank encodes its own captions, but all run the encoder equally often.
    offload: brings each network to the device for its work; None = both stay there.
    captions: in place of a cache of `cache_bytes`.
    """

    def __init__(
        self,
        vae: Autoencoder,
        text_encoder: TextEncoder,
        device: torch.device | str,
        dtype: torch.dtype,
        cache_bytes: int = CACHE_BYTES,
        *,
        run_on_leader: Callable[[Callable[[], Any]], Any] = call,
        max_over_text_ranks: Callable[[int], int] | None = None,
        offload: Offload | None = None,
        captions: "CaptionCache | None" = None,
    ):
        home = device if offload is None else HOST
        self.vae = vae.to(device=home, dtype=dtype).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(home, dtype)
        self.device = torch.device(device)
        self.dtype = dtype
        self.captions = CaptionCache(cache_bytes) if captions is None else captions
        self._offload = offload
        self._run_on_leader = run_on_leader
        self._max_over_text_ranks = max_over_text_ranks
        # A stand-in without weights draws from stored moments, which keep their precision.
        self._video_dtype = next((parameter.dtype for parameter in self.vae.parameters()), torch.float32)

    @torch.no_grad()
    def encode_video(self, video_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """Normalized latents [B, C, t, h, w], float32. rngs: one per sample to draw from the posterior; None = mode."""
        with self.on_device(self.vae):
            return self._run_on_leader(
                lambda: self.vae.encode(video_BCTHW.to(self.device, self._video_dtype), rngs).float()
            )

    @torch.no_grad()
    def encode_moments(self, video_BCTHW: Tensor, rngs: Sequence[Generator]) -> Tensor:
        """Mean, then deviation, of the normalized latents on channels: float32 [B, 2 C, t, h, w], for `draw_latents`.

        rngs: one per sample, for an autoencoder whose posterior depends on a draw of its own (OpenSoraVAE_V1_2's on the
        spatial latents): it is made here, once for all epochs.
        """
        posterior = self.vae.posterior(video_BCTHW.to(self.device, self._video_dtype), rngs)
        normalize = self.vae.normalize
        ones = torch.ones_like(posterior.mean)
        deviation = (0.5 * posterior.logvar).exp() * (
            normalize(ones) - normalize(0 * ones)
        )  # the scale of each channel
        return torch.cat([normalize(posterior.mean), deviation], dim=1).float()

    @torch.no_grad()
    def decode_video(self, z_BCTHW: Tensor, num_frames: int | None = None) -> Tensor:
        """Videos [B, 3, T, H, W] on the CPU, float32, about in [-1, 1]. num_frames: the number of frames before encoding.

        Of an autoencoder that decodes in windows, each window leaves the device before the next is made.
        """
        z_BCTHW = z_BCTHW.to(self.device)  # the autoencoder rescales in float32, then casts
        with self.on_device(self.vae):
            return torch.cat([window.float().cpu() for window in self.vae.decode_windows(z_BCTHW, num_frames)], dim=2)

    def encode_text(self, captions: Sequence[str]) -> EncodedText:
        """Token states [B, 1, L, C] in the codec's type and mask [B, L], or class labels [B], on the device.

        Each caption is encoded alone: its numbers never depend on its neighbors, so a resumed run, whose cache starts
        empty, gets the same bits.
        """
        if self._max_over_text_ranks is not None:
            return self._encode_text(captions)
        return self._run_on_leader(lambda: self._encode_text(captions))

    def encode_ahead(self, captions: Iterable[str]) -> None:
        """Encode captions until the cache is full, so that the text encoder works once and not again."""
        for caption in captions:
            if self.captions.get(caption) is None:
                size = self.captions.size
                self.encode_text([caption])
                if not self.captions.keeps_all and self.captions.size <= size:  # full: an earlier one had to leave
                    return

    def on_device(self, network: Any) -> AbstractContextManager[None]:
        """Inside, `network` is on the device, as it always is without offload."""
        return nullcontext() if self._offload is None else self._offload.on_device(network)

    def _encode_text(self, captions: Sequence[str]) -> EncodedText:
        cached = {caption: self.captions.get(caption) for caption in captions}
        encoded = {caption: condition for caption, condition in cached.items() if condition is not None}
        missing = [caption for caption in cached if caption not in encoded]
        calls = len(missing) if self._max_over_text_ranks is None else self._max_over_text_ranks(len(missing))
        encoded |= {caption: self._encode_caption(caption) for caption in missing}
        for _ in range(calls - len(missing)):
            self.text_encoder.encode([""])  # the other ranks need this rank's part
        rows = [encoded[caption] for caption in captions]
        masks = [row.mask_BL for row in rows if row.mask_BL is not None]
        return EncodedText(
            torch.cat([row.text_B1LC for row in rows]).to(self.device),
            torch.cat(masks).to(self.device) if masks else None,
        )

    def _encode_caption(self, caption: str) -> EncodedText:
        """Encode one caption and cache it on the host."""
        with self.on_device(self.text_encoder):
            condition = self.text_encoder.encode([caption])
        text, mask_1L = condition.text_B1LC.cpu(), condition.mask_BL
        if text.is_floating_point():  # class labels stay whole
            text = text.to(self.dtype)
        on_host = EncodedText(text, None if mask_1L is None else mask_1L.cpu())
        self.captions.put(caption, on_host)
        return on_host


def draw_latents(moments_BCTHW: Tensor, rngs: Sequence[Generator] | None) -> Tensor:
    """The latents of `encode_video` from the moments of `encode_moments`."""
    mean, deviation = moments_BCTHW.float().chunk(2, dim=1)
    if rngs is None:
        return mean
    noise = torch.stack([torch.randn(mean.shape[1:], generator=rng) for rng in rngs])  # the numbers of Gaussian.draw
    return mean + deviation * noise.to(mean.device)


class CaptionCache:
    """Encoded captions by caption, at most `limit` bytes; drops the least recently used first."""

    keeps_all = False  # True: those that are dropped can be read again

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0  # bytes
        self._conditions: OrderedDict[str, EncodedText] = OrderedDict()

    def __len__(self) -> int:
        return len(self._conditions)

    def get(self, caption: str) -> EncodedText | None:
        if caption in self._conditions:
            self._conditions.move_to_end(caption)
        return self._conditions.get(caption)

    def put(self, caption: str, condition: EncodedText) -> None:
        if condition_bytes(condition) > self.limit:
            return
        replaced = self._conditions.pop(caption, None)
        self.size += condition_bytes(condition) - (condition_bytes(replaced) if replaced else 0)
        self._conditions[caption] = condition
        while self.size > self.limit:
            self.size -= condition_bytes(self._conditions.popitem(last=False)[1])


def condition_bytes(condition: EncodedText) -> int:
    """Memory that the tensors of a condition take."""
    return condition.text_B1LC.nbytes + (0 if condition.mask_BL is None else condition.mask_BL.nbytes)
