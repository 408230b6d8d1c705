"""Requests -> videos: noise, guided denoising, decoding.

B requests, C T H W latent channels, frames, rows, columns. A video depends on its prompt, seed and repeat, never on a
rank: its noise comes from `generator(seed, purpose, repeat)`. So two prompts with one seed start from the same noise
and can be compared. A batch of one gives the same bits wherever it runs; a larger batch is equal to it up to the
rounding of the matrix products, which is why the batch size is a part of what is written beside the video.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError, OpenSoraError
from opensora.models.layers.text_context import TextCache
from opensora.rng import generator
from opensora.sampling.model_inputs import make_model_inputs
from opensora.sampling.reference_frames import GivenFrames, loops, overlap
from opensora.types import SampleRequest


@dataclass(frozen=True)
class Sampler:
    """What sampling is made of, weights loaded and on their device."""

    model: Any  # an nn.Module of MODELS
    scheduler: Any  # one of SCHEDULERS
    codec: Any  # models/codec.py: text encoder and autoencoder
    forward: Callable[..., Tensor] | None = None  # calls the model, as an engine does; None = the model itself


def generate(
    requests: Sequence[SampleRequest],
    sampler: Sampler,
    *,
    guidance_scale: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """One video per request, float32 [3, T, H, W] on the CPU, about [-1, 1]; the requests share one size.

    Where a request names given frames they are pasted into the noise and kept, or given to a conditioned model as a
    condition of their own; where it asks for several loops, each clip begins with the end of the one before and adds
    what is new.

    guidance_scale: None takes the scheduler's `cfg_scale`; 1 switches guidance off and halves the work.
    progress: called with (steps done, steps) after every denoising step.
    Raises ConfigError when the sizes do not fit, OpenSoraError when the result is not finite.
    """
    model = sampler.model
    size, clips = _shared_size(requests), loops(requests[0])
    check_size(size, sampler)
    repeated = overlap(requests[0], sampler.codec.vae)
    scale = guidance(sampler.scheduler, guidance_scale)
    was_training = model.training
    model.eval()
    parts: list[Tensor] = []
    try:
        with torch.no_grad():  # not inference_mode: the codec's cached captions may be trained on afterwards
            frames = [GivenFrames(request, sampler.codec) for request in requests]
            for loop in range(clips):
                report = None if progress is None else partial(_of_all_loops, progress, loop, clips)
                clip_BCTHW = _clip(requests, sampler, frames, loop, scale, report)
                parts.append(clip_BCTHW[:, :, repeated if loop else 0 :])
                if loop + 1 < clips:
                    for given, clip_CTHW in zip(frames, clip_BCTHW, strict=True):
                        given.go_on(clip_CTHW, loop + 1)
    finally:
        model.train(was_training)
    video_BCTHW = torch.cat(parts, dim=2)
    for request, video_CTHW in zip(requests, video_BCTHW, strict=True):
        if not bool(video_CTHW.isfinite().all()):
            raise OpenSoraError(
                f"prompt {request.prompt!r}: the model produced NaN or infinite pixels; try dtype='fp32', "
                "a lower guidance scale, or an earlier checkpoint"
            )
    return list(video_BCTHW)


def _clip(
    requests: Sequence[SampleRequest],
    sampler: Sampler,
    frames: Sequence[GivenFrames],
    loop: int,
    scale: float,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """The clips [B, 3, T, H, W] of one loop, float32 on the CPU."""
    model, scheduler, codec = sampler.model, sampler.scheduler, sampler.codec
    size = _shared_size(requests)
    shape = latent_shape(size, sampler)
    noise_BCTHW = [draw_noise(request, shape, loop) for request in requests]
    bound = make_model_inputs(requests, model, scheduler, codec, frames, noise_BCTHW, loop, scale)
    forward, text, text_cache = sampler.forward or model, bound.text, TextCache()

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        return forward(x, t_B, text.text_B1LC, mask=text.mask_BL, x_mask=x_mask, text_cache=text_cache, **bound.told)

    z_BCTHW = scheduler.sample(
        denoise,
        bound.start_BCTHW,
        [sampling_rng(request, _purpose("sample steps", loop)) for request in requests],
        guidance_scale=scale,
        size=size,
        progress=progress,
        **bound.options,
    )
    return codec.decode_video(z_BCTHW, size[0])


def _of_all_loops(progress: Callable[[int, int], None], loop: int, clips: int, done: int, steps: int) -> None:
    progress(loop * steps + done, clips * steps)


def guidance(scheduler: Any, guidance_scale: float | None) -> float:
    """The scale that will be used: the one given, else the scheduler's own."""
    return float(scheduler.cfg_scale if guidance_scale is None else guidance_scale)


def sampling_rng(request: SampleRequest, purpose: str) -> Generator:
    """The randomness of one video, keyed by what the user can repeat: the seed and the how-manieth video it is."""
    return generator(request.seed, purpose, request.repeat)


def draw_noise(request: SampleRequest, shape: Sequence[int], loop: int = 0) -> Tensor:
    """The noise a clip starts from, drawn on the CPU in float32 so that every device starts from the same."""
    return torch.randn(tuple(shape), generator=sampling_rng(request, _purpose("sample noise", loop)))


def _purpose(what: str, loop: int) -> str:
    """Every clip of a joined video draws for itself."""
    return f"{what}, loop {loop}" if loop else what


def latent_shape(size: tuple[int, int, int], sampler: Sampler) -> tuple[int, int, int, int]:
    """(C, T, H, W) of the latents of a video of (frames, height, width)."""
    time, height, width = sampler.codec.vae.latent_size(size)
    return sampler.codec.vae.latent_channels, time, height, width


def check_size(size: tuple[int, int, int], sampler: Sampler) -> None:
    """ConfigError unless the autoencoder's latents are what the model takes."""
    channels, *latent = latent_shape(size, sampler)
    if channels != sampler.model.in_channels:
        raise ConfigError(
            f"model.in_channels: {sampler.model.in_channels}, but the autoencoder's latents have {channels} channels; "
            "they are equal; use the autoencoder the model was trained with"
        )
    if not sampler.model.fixed_size:
        return
    own = list(sampler.model.input_size)
    if own != list(latent):
        raise ConfigError(
            f"num_frames, image_size: a video of {size[0]} frames of {size[1]}x{size[2]} has latents of {tuple(latent)}; "
            f"the model takes {tuple(own)} (frames, rows, columns); ask for the size it was trained on"
        )


def shape_key(request: SampleRequest) -> tuple[int, ...]:
    """What the requests of one batch share: frames, height, width, and how clips are joined."""
    length = (
        request.conditioning.condition_frame_length if request.conditioning is not None and loops(request) > 1 else 0
    )
    return request.num_frames, request.height, request.width, loops(request), length


def _shared_size(requests: Iterable[SampleRequest]) -> tuple[int, int, int]:
    """(frames, height, width) of all requests; ValueError when they differ, for a batch is one tensor."""
    sizes = {shape_key(request) for request in requests}
    if len(sizes) != 1:
        raise ValueError(f"requests of one batch share one size, got {sorted(sizes)}")
    frames, height, width, *_ = sizes.pop()
    return frames, height, width
