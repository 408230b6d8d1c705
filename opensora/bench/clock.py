"""Seconds of an action, and what a device's matrix products reach at best, taken in the same minutes.

A shared machine is never quiet: rates and times are measured in turns, and the best of each counts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from opensora.platforms import Platform


@dataclass(frozen=True)
class Timing:
    seconds: float  # of the fastest run
    flops_per_second: float  # of the fastest matrix product between the runs


def seconds_of(action: Callable[[], object], platform: Platform) -> float:
    platform.synchronize()
    start = time.perf_counter()
    action()
    platform.synchronize()
    return time.perf_counter() - start


def matmul_rate(platform: Platform, dtype: torch.dtype, shape: tuple[int, int, int], repeats: int = 4) -> float:
    """FLOP/s of the fastest of `repeats` products [n, k] x [k, m]."""
    n, k, m = shape
    device = platform.device()
    a, b = (torch.randn(size, device=device).to(dtype) for size in ((n, k), (k, m)))
    return 2 * n * k * m / min(seconds_of(lambda: a @ b, platform) for _ in range(repeats))


def measure(
    action: Callable[[], object], platform: Platform, dtype: torch.dtype, shape: tuple[int, int, int], repeats: int = 3
) -> Timing:
    """The fastest of `repeats` runs after one to warm up, and the matrix product rate beside it."""
    action()
    rates, times = [], []
    for _ in range(repeats):
        rates.append(matmul_rate(platform, dtype, shape))
        times.append(seconds_of(action, platform))
    return Timing(min(times), max(rates))


def alternate(actions: list[Callable[[], object]], platform: Platform, repeats: int = 3) -> list[float]:
    """Seconds of each action's fastest run; they take turns, so that a slow minute hits all alike."""
    for action in actions:
        action()
    rounds = [[seconds_of(action, platform) for action in actions] for _ in range(repeats)]
    return [min(times) for times in zip(*rounds, strict=True)]
