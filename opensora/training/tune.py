"""Micro-batch sizes for `bucket_config`: as many clips of each size as a step-time goal and the memory allow.

`tune` is the search, over whatever tells seconds and bytes; `StepTimer` and `step_bytes` tell them of a run's own model.
"""

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from opensora.datasets.base import ClipSize
from opensora.datasets.buckets import Bucket, Buckets
from opensora.models.build import DTYPES, assemble, build_denoiser
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.platforms import Platform
from opensora.schema import TrainRun
from opensora.training.build import build_scheduler
from opensora.training.diffusion_task import DiffusionTask
from opensora.types import Batch, EncodedText

Seconds = Callable[[ClipSize, int], float]  # of a micro-batch of so many clips; math.inf where it does not fit
Bytes = Callable[[ClipSize, int], int]

MOST = 4096  # clips in a micro-batch: beyond it a goal is not a goal
REPEATS = 2  # timed steps, of which the faster counts; one more goes before them


@dataclass(frozen=True)
class Line:
    """What was found for one length of one resolution."""

    resolution: str
    num_frames: int
    size: ClipSize  # of the aspect ratio with the most pixels
    before: int | None  # batch size in the config
    batch_size: int  # 0: not even one clip fits into memory
    seconds: float  # of a micro-batch of that size
    bytes: int  # that it is estimated to need
    too_slow: bool  # a single clip already misses the goal


def largest(fits: Callable[[int], bool], first: int = 1, most: int = MOST) -> int:
    """The largest n from 1 to `most` that fits, 0 when not even 1 does; what fits, fits for every smaller n.

    Doubles from `first` while it fits (or halves until it does), then bisects what is left.
    """
    low, high = 0, most + 1  # low fits, high does not
    n = min(max(first, 1), most)
    while n >= 1 and low < n < high:
        if fits(n):
            low, n = n, min(2 * n, most)
        else:
            high, n = n, n // 2
        if low and high <= most:
            break
    while high - low > 1 and low < most:
        n = (low + high) // 2
        low, high = (n, high) if fits(n) else (low, n)
    return low


def tune(
    buckets: Buckets, seconds: Seconds, needed: Bytes, *, step_seconds: float, memory: int, most: int = MOST
) -> list[Line]:
    """A batch size for every length of every resolution, from the most pixels down: what fits those fits the next.

    step_seconds: a micro-batch may take so long. memory: bytes it may need; nothing larger is ever run.
    A single clip that is too slow stays, with `too_slow`; one that does not fit gets batch size 0.
    """
    found: list[Line] = []
    first = 1
    for bucket in sorted(_widest(buckets), key=lambda each: -math.prod(buckets.size(each))):
        size, taken = buckets.size(bucket), dict[int, float]()

        def fits_memory(n: int, size: ClipSize = size) -> bool:
            return needed(size, n) <= memory

        def fits(n: int, size: ClipSize = size, taken: dict[int, float] = taken) -> bool:
            if not fits_memory(n):
                return False
            taken[n] = seconds(size, n)
            return taken[n] <= step_seconds

        n = largest(fits, first, most)
        too_slow = n == 0 and fits_memory(1) and math.isfinite(taken[1])
        batch_size = 1 if too_slow else n
        found.append(
            Line(
                bucket.resolution,
                bucket.num_frames,
                size,
                buckets.batch_size(bucket) if buckets.takes(bucket) else None,
                batch_size,
                taken[batch_size] if batch_size else math.inf,
                needed(size, max(1, batch_size)),
                too_slow,
            )
        )
        first = max(1, batch_size)
    return found


def _widest(buckets: Buckets) -> list[Bucket]:
    """Of every length that takes clips, the aspect ratio with the most pixels."""
    best: dict[tuple[str, int], Bucket] = {}
    for bucket in buckets.all:
        if not buckets.takes(bucket):
            continue
        pair = bucket.resolution, bucket.num_frames
        if pair not in best or math.prod(buckets.size(bucket)) > math.prod(buckets.size(best[pair])):
            best[pair] = bucket
    return list(best.values())


def tuned_config(config: Mapping[str, Mapping[Any, Sequence[Any]]], lines: Sequence[Line]) -> dict[str, dict[int, Any]]:
    """`bucket_config` with the batch sizes found; what does not fit is never chosen any more: chance 0."""
    found: dict[str, dict[int, Any]] = {
        name: {int(frames): tuple(entry) for frames, entry in lengths.items()} for name, lengths in config.items()
    }
    for line in lines:
        chance, _ = found[line.resolution][line.num_frames]
        entry = (chance, line.batch_size) if line.batch_size else (0.0, None)
        found[line.resolution][line.num_frames] = entry
    return found


class _Drawn:
    """In the place of a codec: latents and token states of noise, of the sizes that autoencoder and encoder would give."""

    def __init__(self, vae: Any, model: Any, device: torch.device, dtype: torch.dtype):
        self.vae, self.model, self.device, self.dtype = vae, model, device, dtype

    def encode_video(self, video_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        size = self.vae.latent_size(tuple(video_BCTHW.shape[2:]))
        return torch.randn(len(video_BCTHW), self.vae.latent_channels, *size, device=self.device)

    def encode_text(self, captions: Sequence[str]) -> EncodedText:
        n, model = len(captions), self.model
        if getattr(model, "num_classes", None) is not None:
            return EncodedText(torch.zeros(n, dtype=torch.long, device=self.device), None)
        length = model.model_max_length
        states = torch.randn(n, 1, length, model.caption_channels, device=self.device, dtype=self.dtype)
        return EncodedText(states, torch.ones(n, length, dtype=torch.long, device=self.device))


class StepTimer:
    """Seconds of one forward and backward of a run's model, on noise: no data, no autoencoder, no text encoder.

    The task is the one of training, loss included. Weights are as initialised, which changes no time.
    """

    def __init__(self, run: TrainRun, size: ClipSize, platform: Platform):
        """size: of the largest clips, for models that are built for a size."""
        dtype = DTYPES[run.dtype]
        with torch.device("meta"):
            parts = assemble(
                run.model or {}, run.vae, run.text_encoder or {}, num_frames=size[0], image_size=size[1:], weights=False
            )
        model: Any = build_denoiser(parts.model_config, seed=run.seed)
        if run.grad_checkpoint:
            checkpoint_activations(model.checkpoint_blocks())
        narrow = run.plugin not in ("ddp", "hybrid")  # which keep fp32 weights and cast as they go
        self.model = model.to(platform.device(), dtype if narrow else None).train()
        self.platform = platform
        self.cast: Callable[[], Any] = nullcontext if narrow else lambda: platform.autocast(dtype)
        self.task = DiffusionTask(
            trained=self.model,
            codec=_Drawn(parts.vae, self.model, platform.device(), dtype),  # type: ignore[arg-type]
            scheduler=build_scheduler(run),
            seed=run.seed,
            model_config={},
            run_record={},
        )

    def __call__(self, size: ClipSize, n: int) -> float:
        """The faster of some steps; math.inf when the device runs out of memory."""
        video_BCTHW = torch.zeros(()).expand(n, 3, *size)  # its shape is all that is looked at
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
        with self.cast():
            loss = self.task.loss(self.model, batch).loss_B.mean()
        loss.backward()
        self.platform.synchronize()
        return time.perf_counter() - start


def step_bytes(run: TrainRun, world: int) -> Bytes:
    """What `opensora check` estimates of a rank among `world`: weights, optimizer, networks beside, activations."""
    from opensora.training.plan import estimate_run

    # Worked out anew for each batch size: which moment of a step is the fullest changes with it.
    return functools.cache(lambda size, n: estimate_run(replace(run, batch_size=n), size, world).memory_total)
