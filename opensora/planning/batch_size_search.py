"""Batch-size search for `bucket_config`: the most clips of each size that a step-time goal and the memory allow.

`search_batch_sizes` is the search over functions of seconds and bytes; `StepTimer` and `step_bytes` measure and estimate
these for a run's own model.
"""

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from opensora.datasets.base import ClipSize, SizedDataset
from opensora.datasets.bucket_plan import BucketOrder
from opensora.datasets.buckets import DROPPED, Bucket, Buckets
from opensora.interfaces import Autoencoder, Denoiser
from opensora.models.build import assemble, build_denoiser
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.parallel.engine import PrecisionWrapper
from opensora.parallel.plugins.base import plugin_class
from opensora.planning.dry_run import estimate_run
from opensora.platforms import Platform
from opensora.schema import TrainRun
from opensora.training.build import build_scheduler
from opensora.training.diffusion_task import DiffusionTask
from opensora.types import DTYPES, Batch, EncodedText

Seconds = Callable[[ClipSize, int], float]  # of a micro-batch of n clips; math.inf where it does not fit
Bytes = Callable[[ClipSize, int], int]

MAX_BATCH = 4096  # upper bound of the search, clips in a micro-batch
REPEATS = 2  # timed steps, of which the faster counts; one untimed step comes first


@dataclass(frozen=True)
class BucketResult:
    """The batch size of one length of one resolution."""

    resolution: str
    num_frames: int
    size: ClipSize  # of the aspect ratio with the most pixels
    config_batch_size: int | None
    batch_size: int  # 0: not even one clip fits into memory
    seconds: float  # of a micro-batch of that size
    bytes: int  # that it is estimated to need
    too_slow: bool  # one clip alone misses the goal
    most: int | None = None  # the limit that the search met: a larger batch would have more clips than there are rows


def largest_fitting(fits: Callable[[int], bool], first: int = 1, limit: int = MAX_BATCH) -> int:
    """The largest n from 1 to `limit` for which fits(n), 0 when fits(1) is false; `fits` must be monotonic.

    Doubles from `first` while it fits (or halves until it does), then bisects the rest.
    """
    low, high = 0, limit + 1  # low fits, high does not
    n = min(max(first, 1), limit)
    while n >= 1 and low < n < high:
        if fits(n):
            low, n = n, min(2 * n, limit)
        else:
            high, n = n, n // 2
        if low and high <= limit:
            break
    while high - low > 1 and low < limit:
        n = (low + high) // 2
        low, high = (n, high) if fits(n) else (low, n)
    return low


def search_batch_sizes(
    buckets: Buckets,
    seconds: Seconds,
    needed: Bytes,
    *,
    step_seconds: float,
    memory: int,
    limit: int = MAX_BATCH,
    most: Mapping[tuple[str, int], int] | None = None,
    report: Callable[[BucketResult], None] = lambda result: None,
) -> list[BucketResult]:
    """A batch size for every length of every resolution, from the most pixels down.

    step_seconds: the goal for a micro-batch. memory: bytes that it may need; nothing larger is ever run. A single clip
    that misses the goal keeps batch size 1 and is marked `too_slow`; one that does not fit gets batch size 0.
    most: (resolution, frames) -> the largest batch size to try, from 1. report: called with each result as it comes.
    """
    results: list[BucketResult] = []
    first = 1  # a batch size that fits one bucket is the first guess for the next, smaller one
    for bucket in sorted(_largest_buckets(buckets), key=lambda bucket: -math.prod(buckets.size(bucket))):
        size = buckets.size(bucket)
        timed: dict[int, float] = {}
        fits = functools.partial(_fits, timed, size, seconds, needed, step_seconds, memory)
        allowed = min(limit, (most or {}).get((bucket.resolution, bucket.num_frames), limit))
        n = largest_fitting(fits, first, allowed)
        too_slow = n == 0 and math.isfinite(timed.get(1, math.inf))
        batch_size = 1 if too_slow else n
        results.append(
            BucketResult(
                resolution=bucket.resolution,
                num_frames=bucket.num_frames,
                size=size,
                config_batch_size=buckets.batch_size(bucket),
                batch_size=batch_size,
                seconds=timed[batch_size] if batch_size else math.inf,
                bytes=needed(size, max(1, batch_size)),
                too_slow=too_slow,
                most=allowed if allowed < limit and n == allowed else None,
            )
        )
        report(results[-1])
        first = max(1, batch_size)
    return results


def most_clips(dataset: SizedDataset, buckets: Buckets, seed: int, micro_batches: int) -> dict[tuple[str, int], int]:
    """(resolution, frames) -> the largest batch size with which an epoch has a step of that length, at least 1.

    Of the aspect ratios that with the most rows counts.
    """
    chosen = BucketOrder(dataset, buckets, seed=seed, micro_batches=micro_batches).choices(0)
    counts = np.bincount(chosen[chosen != DROPPED], minlength=len(buckets))
    most: dict[tuple[str, int], int] = {}
    for bucket, rows in zip(buckets.all, counts.tolist(), strict=True):
        pair = bucket.resolution, bucket.num_frames
        most[pair] = max(most.get(pair, 1), rows // micro_batches)
    return most


def _fits(
    timed: dict[int, float], size: ClipSize, seconds: Seconds, needed: Bytes, step_seconds: float, memory: int, n: int
) -> bool:
    """Test n clips; their seconds are added to `timed` unless they need too much memory to be run."""
    if needed(size, n) > memory:
        return False
    timed[n] = seconds(size, n)
    return timed[n] <= step_seconds


def _largest_buckets(buckets: Buckets) -> list[Bucket]:
    """For every length that takes clips, the aspect ratio with the most pixels."""
    largest: dict[tuple[str, int], Bucket] = {}
    for bucket in buckets.all:
        if not buckets.takes(bucket):
            continue
        pair = bucket.resolution, bucket.num_frames
        if pair not in largest or math.prod(buckets.size(bucket)) > math.prod(buckets.size(largest[pair])):
            largest[pair] = bucket
    return list(largest.values())


def updated_bucket_config(
    config: Mapping[str, Mapping[Any, Sequence[Any]]], results: Sequence[BucketResult]
) -> dict[str, dict[int, Any]]:
    """`bucket_config` with the new batch sizes; a size that does not fit gets chance 0."""
    updated: dict[str, dict[int, Any]] = {
        name: {int(frames): tuple(entry) for frames, entry in lengths.items()} for name, lengths in config.items()
    }
    for result in results:
        chance, _ = updated[result.resolution][result.num_frames]
        entry = (chance, result.batch_size) if result.batch_size else (0.0, None)
        updated[result.resolution][result.num_frames] = entry
    return updated


class RandomCodec:
    """A codec that returns noise of the shapes that the autoencoder and the text encoder would return."""

    def __init__(self, vae: Autoencoder, model: Denoiser, device: torch.device, dtype: torch.dtype):
        self.vae, self.model, self.device, self.dtype = vae, model, device, dtype

    def encode_video(self, video_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        frames, height, width = video_BCTHW.shape[2:]
        size = self.vae.latent_size((frames, height, width))
        return torch.randn(len(video_BCTHW), self.vae.latent_channels, *size, device=self.device)

    def encode_text(self, captions: Sequence[str]) -> EncodedText:
        n, model = len(captions), self.model
        if getattr(model, "num_classes", None) is not None:
            return EncodedText(torch.zeros(n, dtype=torch.long, device=self.device), None)
        length = model.model_max_length
        states = torch.randn(n, 1, length, model.caption_channels, device=self.device, dtype=self.dtype)
        return EncodedText(states, torch.ones(n, length, dtype=torch.long, device=self.device))


class StepTimer:
    """Seconds of one forward and backward of a run's model on noise: no data, no autoencoder, no text encoder.

    The task is that of training, loss included. Weights are as initialized, which changes no time.
    """

    def __init__(self, run: TrainRun, size: ClipSize, platform: Platform):
        """size: of the largest clips, for models that are built for a size."""
        dtype = DTYPES[run.dtype]
        with torch.device("meta"):
            parts = assemble(
                run.model or {},
                run.vae,
                run.text_encoder or {},
                num_frames=size[0],
                image_size=size[1:],
                weights=False,
                lengths=(),  # tune-batch checks those of all buckets
            )
        model = build_denoiser(parts.model_config, seed=run.seed)
        if run.grad_checkpoint:
            checkpoint_activations(model.checkpoint_blocks())
        bf16_weights, device = not plugin_class(run.plugin).autocasts, platform.device()
        self.model = model.to(device, dtype if bf16_weights else None).train()
        assert run.dtype != "auto"  # the platform has chosen
        self.call = PrecisionWrapper(self.model, run.dtype, device, bf16_weights)  # as the plugin's engine calls it
        self.platform = platform
        self.task = DiffusionTask(
            trained=self.model,
            codec=RandomCodec(parts.vae, self.model, device, dtype),  # type: ignore[arg-type]
            scheduler=build_scheduler(run),
            seed=run.seed,
            model_config={},
            run_record={},
        )

    def __call__(self, size: ClipSize, n: int) -> float:
        """The fastest of REPEATS steps; math.inf when the device runs out of memory."""
        video_BCTHW = torch.zeros(()).expand(n, 3, *size)  # only its shape matters
        batch = Batch(video_BCTHW, [""] * n, torch.full((n,), 24.0), step=0, sample_ids=list(range(n)), rows=[0] * n)
        try:
            return min([self._seconds(batch) for _ in range(1 + REPEATS)][1:])
        except torch.OutOfMemoryError:
            return math.inf
        finally:
            self.model.zero_grad(set_to_none=True)
            gc.collect()

    def _seconds(self, batch: Batch) -> float:
        self.platform.synchronize()
        start = time.perf_counter()
        self.task.loss(self.call, batch).loss_B.mean().backward()
        self.platform.synchronize()
        return time.perf_counter() - start


def step_bytes(run: TrainRun, world: int) -> Bytes:
    """The memory of a rank among `world` as `opensora check` estimates it: weights, optimizer, encoders, activations.

    Every batch size has its own estimate, because the fullest moment of a step changes with it.
    """
    return functools.cache(lambda size, n: estimate_run(replace(run, batch_size=n), size, world).estimate.total)
