"""One forward and backward of the largest micro-batch before training starts.

A run whose largest bucket does not fit ends in its first minute rather than on its third day, and the device's allocator
reserves the largest blocks before smaller ones split its memory.
"""

from collections.abc import Sequence

import torch

from opensora.datasets.bucket_report import BucketLine
from opensora.log import logger
from opensora.parallel.engine import Engine
from opensora.rng import generator
from opensora.training.task import Task
from opensora.types import Batch


def largest_batch(line: BucketLine, seed: int, shape: Sequence[int]) -> Batch:
    """A micro-batch of noise with the size of the bucket; no data is read.

    shape: of a clip, in pixels or stored moments.
    """
    video_BCTHW = torch.rand((line.batch_size, *shape), generator=generator(seed, "warm-up")) * 2 - 1
    n, sample_ids = line.batch_size, list(range(line.batch_size))
    return Batch(
        video_BCTHW, [""] * n, torch.full((n,), 24.0), step=0, sample_ids=sample_ids, rows=[0] * n, size=line.size
    )


def warm_up(task: Task, engine: Engine, line: BucketLine, seed: int) -> None:
    """Forward and backward without an update; afterwards weights, gradients and random numbers are as before.

    All ranks call it, since gradients are averaged over them.
    """
    device = engine.world.device
    with torch.random.fork_rng([] if device.index is None else [device.index], device_type=device.type):
        stored = getattr(task.autoencoder, "clip_shape", None)
        shape = (3, *line.size) if stored is None else stored(line.size)
        with engine.accumulating(last=True):
            loss = task.loss(engine.model, largest_batch(line, seed, shape))
            engine.backward(loss.loss_B.mean())
        engine.grad_norm()
        engine.discard_gradients()
    logger().info("warm-up: %s, batch %d, %d tokens", line.name(), line.batch_size, loss.tokens)
