"""Requests -> videos: noise, guided denoising, decoding.

B requests, C T H W latent channels, frames, rows, columns. A video depends on its prompt, seed and repeat, never on a
rank: its noise comes from `generator(seed, purpose, repeat)`. So two prompts with one seed start from the same noise
and can be compared. A batch of one gives the same bits on every rank; a larger batch is equal to it up to the rounding
of matrix products, so the batch size is part of the metadata of a video.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError, OpenSoraError
from opensora.interfaces import Autoencoder, Denoiser, Scheduler
from opensora.log import logger
from opensora.models.codec import Codec
from opensora.models.offload import Offload
from opensora.rng import generator
from opensora.sampling.bound_denoiser import bound_denoiser
from opensora.sampling.clean_estimate import Preview, clean_estimate
from opensora.sampling.mask_strategy import frames_of_latents
from opensora.sampling.model_inputs import ModelInputs, make_model_inputs
from opensora.sampling.reference_frames import ReferenceFrames, num_loops, overlap_frames
from opensora.sampling.safety_filters.base import SafetyFilter, check_video
from opensora.sampling.shortcuts import Shortcuts
from opensora.sampling.video_writer import rgb_frames
from opensora.schedulers.masking import choose_frames
from opensora.types import SampleRequest


@dataclass(frozen=True)
class Sampler:
    """The networks and the scheduler of a sampling run, weights loaded, and on their device unless there is an offload."""

    model: Denoiser
    scheduler: Scheduler
    codec: Codec
    forward: Callable[..., Tensor] | None = None  # calls the model, as an engine does; None = the model itself
    shortcuts: Shortcuts = Shortcuts()
    safety_filter: SafetyFilter | None = None
    offload: Offload | None = None  # brings the model to the device for its steps, as the codec's does for the others
    encodes_ahead: bool = False  # all captions before the first video, so that the text encoder works once


def generate(
    requests: Sequence[SampleRequest],
    sampler: Sampler,
    guidance_scale: float,
    progress: Callable[[int, int], None] | None = None,
    preview: Preview | None = None,
) -> list[Tensor]:
    """One video per request, float32 [3, T, H, W] on the CPU, about [-1, 1]; the requests share one size.

    Reference frames of a request are pasted into the noise and kept, or given to a conditioned model as latents of
    their own. With several loops, each clip begins with the end of the one before and adds new frames.

    guidance_scale: 1 switches guidance off and halves the work.
    progress: called with (steps done, steps) after every denoising step.
    preview: shows the videos as they would be if the model were right at once; the result does not depend on it.
    Raises OpenSoraError when a video is not finite, or the safety filter refuses it; with one, there is no preview.
    `check_size` finds sizes that do not fit the model.
    """
    model = sampler.model
    preview = None if sampler.safety_filter is not None else preview
    clips = num_loops(requests[0])
    repeated = overlap_frames(requests[0], sampler.codec.vae)
    was_training = model.training
    model.eval()
    parts: list[Tensor] = []
    try:
        with torch.no_grad():  # not inference_mode: the codec's cached captions may be trained on afterwards
            references = [ReferenceFrames(request, sampler.codec) for request in requests]
            for loop in range(clips):
                clip_progress = None if progress is None else partial(_of_all_loops, progress, loop, clips)
                clip_BCTHW = _generate_clip(requests, sampler, references, loop, guidance_scale, clip_progress, preview)
                parts.append(clip_BCTHW[:, :, repeated if loop else 0 :])
                if loop + 1 < clips:
                    for frames, clip_CTHW in zip(references, clip_BCTHW, strict=True):
                        frames.append_clip(clip_CTHW, loop + 1)
    finally:
        model.train(was_training)
    video_BCTHW = torch.cat(parts, dim=2)
    for request, video_CTHW in zip(requests, video_BCTHW, strict=True):
        if not bool(video_CTHW.isfinite().all()):
            raise OpenSoraError(
                f"prompt {request.prompt!r}: the model produced NaN or infinite pixels; try dtype='fp32', "
                "a lower guidance scale, or an earlier checkpoint"
            )
        if sampler.safety_filter is not None:
            check_video(sampler.safety_filter, rgb_frames(video_CTHW), request)
    return list(video_BCTHW)


def _generate_clip(
    requests: Sequence[SampleRequest],
    sampler: Sampler,
    references: Sequence[ReferenceFrames],
    loop: int,
    guidance_scale: float,
    progress: Callable[[int, int], None] | None,
    preview: Preview | None,
) -> Tensor:
    """The clips [B, 3, T, H, W] of one loop, float32 on the CPU."""
    model, scheduler, codec = sampler.model, sampler.scheduler, sampler.codec
    size = _shared_size(requests)
    shape = latent_shape(size, sampler)
    noise_BCTHW = [initial_noise(request, shape, loop) for request in requests]
    inputs = make_model_inputs(requests, model, scheduler, codec, references, noise_BCTHW, loop, guidance_scale)
    calls = count_calls(scheduler, inputs, guidance_scale, size) if sampler.shortcuts.cache is not None else None
    forward, timesteps = sampler.forward or model, scheduler.num_timesteps

    def look(number: int, x: Tensor, answer: Tensor, t_B: Tensor, mask_BT: Tensor | None) -> None:
        if preview is not None and number % preview.every == preview.every - 1:
            estimate = choose_frames(mask_BT, clean_estimate(scheduler, x, answer, t_B), x)
            preview.show(codec.decode_video(estimate, size[0]))

    looking = look if preview is not None else None
    with (
        nullcontext() if sampler.offload is None else sampler.offload.on_device(model),
        bound_denoiser(model, forward, inputs, sampler.shortcuts, timesteps, calls, looking) as denoise,
    ):
        z_BCTHW = scheduler.sample(
            denoise,
            inputs.initial_BCTHW,
            [_rng(request, "sample steps", loop) for request in requests],
            guidance_scale=guidance_scale,
            size=size,
            progress=progress,
            **inputs.sampler_kwargs,
        )
    if summary := denoise.summary():
        logger().info("sampling: %s", summary)
    return codec.decode_video(z_BCTHW, size[0])


def count_calls(scheduler: Scheduler, inputs: ModelInputs, guidance_scale: float, size: tuple[int, int, int]) -> int:
    """Calls of the model in one clip: fewer than the scheduler's where an edit begins late. Samples one column of zeros."""
    column_BCTHW, calls = torch.zeros_like(inputs.initial_BCTHW[..., :1, :1]), 0

    def answer(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.cat([torch.zeros_like(x)] * 2, dim=1)  # as wide as any answer; samplers take what they need

    rngs = [Generator().manual_seed(0) for _ in column_BCTHW]
    scheduler.sample(answer, column_BCTHW, rngs, guidance_scale=guidance_scale, size=size, **inputs.sampler_kwargs)
    return calls


def _of_all_loops(progress: Callable[[int, int], None], loop: int, clips: int, done: int, steps: int) -> None:
    progress(loop * steps + done, clips * steps)


def initial_noise(request: SampleRequest, shape: Sequence[int], loop: int = 0) -> Tensor:
    """The noise a clip starts from, drawn on the CPU in float32 so that every device starts from the same."""
    return torch.randn(tuple(shape), generator=_rng(request, "sample noise", loop))


def _rng(request: SampleRequest, purpose: str, loop: int) -> Generator:
    """The generator of one clip, keyed by the seed, the repeat index and the loop."""
    return generator(request.seed, f"{purpose}, loop {loop}" if loop else purpose, request.repeat)


def latent_shape(size: tuple[int, int, int], sampler: Sampler) -> tuple[int, int, int, int]:
    """(C, T, H, W) of the latents of a video of (frames, height, width)."""
    time, height, width = sampler.codec.vae.latent_size(size)
    return sampler.codec.vae.latent_channels, time, height, width


def check_size(size: tuple[int, int, int], sampler: Sampler) -> None:
    """ConfigError unless the model takes the autoencoder's latents of a video of (frames, height, width)."""
    channels, *latent = latent_shape(size, sampler)
    if channels != sampler.model.in_channels:
        raise ConfigError(
            f"model.in_channels: {sampler.model.in_channels}, but the autoencoder's latents have {channels} channels; "
            "they must match; use the autoencoder the model was trained with"
        )
    if not sampler.model.fixed_size:
        return
    allowed = list(sampler.model.input_size)
    if allowed != list(latent):
        raise ConfigError(
            f"num_frames, image_size: a video of {size[0]} frames of {size[1]}x{size[2]} has latents of {tuple(latent)}; "
            f"the model takes {tuple(allowed)} (frames, rows, columns); sample the size it was trained on, "
            f"{_in_pixels(allowed, sampler.codec.vae)}; docs/weights.md shows the way to make it longer or larger"
        )


def _in_pixels(latent: Sequence[int], vae: Autoencoder) -> str:
    """The shortest clip with latents of (frames, rows, columns), in words."""
    height, width = latent[1] * vae.compression[1], latent[2] * vae.compression[2]
    frames = frames_of_latents(latent[0], lambda n: vae.latent_size((n, height, width))[0])
    return f"{frames} frame{'s' if frames > 1 else ''} of {height}x{width}"


def shape_key(request: SampleRequest) -> tuple[int, ...]:
    """Frames, height, width, and how clips are joined: equal for all requests of one batch."""
    loops = num_loops(request)
    length = request.conditioning.condition_frame_length if request.conditioning is not None and loops > 1 else 0
    return request.num_frames, request.height, request.width, loops, length or 0


def _shared_size(requests: Iterable[SampleRequest]) -> tuple[int, int, int]:
    """(frames, height, width) of all requests; ValueError when they differ, for a batch is one tensor."""
    sizes = {shape_key(request) for request in requests}
    if len(sizes) != 1:
        raise ValueError(f"requests of one batch share one size, got {sorted(sizes)}")
    frames, height, width, *_ = sizes.pop()
    return frames, height, width
