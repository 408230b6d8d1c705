"""Seconds and errors of sampled videos, by stage."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensora.evaluation.psnr import psnr
from opensora.evaluation.shape_adherence import accuracy
from opensora.platforms import Platform
from opensora.sampling.generate import Sampler, generate
from opensora.sampling.metadata import GenerationSettings
from opensora.sampling.video_writer import write_sample
from opensora.types import SampleRequest

STAGES = ("text encoder", "denoiser", "decoder", "writing")


@dataclass(frozen=True)
class Sampled:
    """Videos [B, 3, T, H, W] in [-1, 1], their latents, and the seconds of making them, in all and by stage.

    model_rows: videos and copies of them that the denoiser saw, in all calls. block_work: numbers that its last block saw.
    """

    videos: Tensor
    latents: Tensor
    seconds: float
    stages: dict[str, float]
    model_rows: int = 0
    block_work: int = 0


def sample(sampler: Sampler, requests: Sequence[SampleRequest], platform: Platform) -> Sampled:
    """Make the videos of all requests in one batch."""
    codec, spent, latents = sampler.codec, defaultdict[str, float](float), list[Tensor]()

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            platform.synchronize()
            start = time.perf_counter()
            result = function(*arguments, **options)
            platform.synchronize()
            spent[stage] += time.perf_counter() - start
            return result

        return call

    def decode(z: Tensor, num_frames: int | None = None) -> Tensor:
        latents.append(z.float().cpu())
        return decode_video(z, num_frames)

    decode_video, model = codec.decode_video, sampler.model
    counts = {"model": 0, "block": 0}

    def forward(x: Tensor, *arguments: Any, **options: Any) -> Any:
        counts["model"] += len(x)
        return model(x, *arguments, **options)

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        counts["block"] += arguments[0].numel()

    # Caches replace the forward of blocks, so a module inside the last one is counted.
    last_linear = [module for module in model.checkpoint_blocks()[-1].modules() if isinstance(module, nn.Linear)][-1]
    with (
        last_linear.register_forward_pre_hook(count),
        _replaced(codec, encode_text=timed(STAGES[0], codec.encode_text), decode_video=timed(STAGES[2], decode)),
    ):
        start = time.perf_counter()
        videos = generate(
            requests, replace(sampler, forward=timed(STAGES[1], forward)), float(sampler.scheduler.cfg_scale)
        )
        seconds = time.perf_counter() - start
    return Sampled(torch.stack(videos), torch.cat(latents), seconds, dict(spent), counts["model"], counts["block"])


@contextmanager
def _replaced(instance: object, **methods: Callable[..., Any]) -> Iterator[None]:
    """Other methods on one object for a while."""
    vars(instance).update(methods)
    try:
        yield
    finally:
        for name in methods:
            del vars(instance)[name]


def sample_each(sampler: Sampler, requests: Sequence[SampleRequest], platform: Platform) -> Sampled:
    """Make the videos one after the other, as the command does."""
    each = [sample(sampler, [request], platform) for request in requests]
    stages = {stage: sum(one.stages.get(stage, 0.0) for one in each) for stage in STAGES}
    return Sampled(
        torch.cat([one.videos for one in each]),
        torch.cat([one.latents for one in each]),
        sum(one.seconds for one in each),
        stages,
        sum(one.model_rows for one in each),
        sum(one.block_work for one in each),
    )


def errors(of: Sampled, exact: Sampled) -> dict[str, float]:
    """Distance to the exact videos: of latents, relative L2; of frames, the mean and the worst PSNR of a video in dB."""
    decibels = psnr(of.videos, exact.videos)
    distance = (of.latents - exact.latents).norm() / exact.latents.norm()
    return {"relative_l2": distance.item(), "psnr": decibels.mean().item(), "worst_psnr": decibels.min().item()}


def adherence(of: Sampled, requests: Sequence[SampleRequest]) -> float:
    """Share of MovingShapes videos with the color, shape and direction of their prompt, as `opensora evaluate adherence`."""
    return accuracy(list(of.videos), [request.prompt for request in requests]).all


def stage_shares(
    sampler: Sampler, requests: Sequence[SampleRequest], settings: GenerationSettings, platform: Platform, folder: Path
) -> dict[str, Any]:
    """Seconds per video and by stage, the file included."""
    sampled = sample_each(sampler, requests, platform)
    start = time.perf_counter()
    for video, request in zip(sampled.videos, requests, strict=True):
        write_sample(video, request, settings, folder)
    writing = time.perf_counter() - start
    count = len(requests)
    stages = {stage: seconds / count for stage, seconds in {**sampled.stages, STAGES[3]: writing}.items()}
    return {"seconds": (sampled.seconds + writing) / count, "stages": stages}
