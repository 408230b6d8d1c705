"""One forward and backward of the largest micro-batch before training starts.

A run whose largest bucket does not fit then ends in its first minute rather than in its third day, and the device's
allocator has met the largest blocks before smaller ones split its memory.
"""

import torch

from opensora.datasets.bucket_report import BucketLine
from opensora.log import logger
from opensora.parallel.engine import Engine
from opensora.random import generator
from opensora.training.task import Task
from opensora.types import Batch


def largest_batch(line: BucketLine, seed: int) -> Batch:
    """A micro-batch of the bucket, of noise: nothing is read. It stands in no optimizer step's place."""
    video_BCTHW = torch.rand((line.batch_size, 3, *line.size), generator=generator(seed, "warm-up")) * 2 - 1
    n = line.batch_size
    return Batch(video_BCTHW, [""] * n, torch.full((n,), 24.0), step=0, places=list(range(n)), rows=[0] * n)


def warm_up(task: Task, engine: Engine, line: BucketLine, seed: int) -> None:
    """Forward and backward without an update; afterwards weights, gradients and random numbers are as before.

    All ranks call it, since gradients are averaged over them.
    """
    device = engine.world.device
    with torch.random.fork_rng([] if device.index is None else [device.index], device_type=device.type):
        loss = task.step(engine.model, largest_batch(line, seed))
        engine.backward(loss.loss_B.mean(), last=True)
        engine.step(lambda norm: False)
    logger().info("warm-up: %s, batch %d, %d tokens", line.name(), line.batch_size, loss.tokens)
