"""Seconds of an action, and the rate of a device's matrix products, measured in the same minutes.

A shared machine is never quiet. An action and matrix products of equal FLOP take turns, so both meet the same
disturbances. The median round counts; the minimum and the maximum are reported as well.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from opensora.platforms import Platform


@dataclass(frozen=True)
class Round:
    """One turn: an action, and matrix products of about the same FLOP."""

    flops: float  # of the action
    seconds: float
    matmul_flops_per_second: float

    @property
    def share(self) -> float:
        """The action's FLOP/s over the matrix products'."""
        return self.flops / self.seconds / self.matmul_flops_per_second


@dataclass(frozen=True)
class Timing:
    rounds: list[Round]

    @property
    def seconds(self) -> float:
        return median(turn.seconds for turn in self.rounds)

    @property
    def matmul_flops_per_second(self) -> float:
        return median(turn.matmul_flops_per_second for turn in self.rounds)

    @property
    def shares(self) -> tuple[float, float, float]:
        """Minimum, median and maximum."""
        shares = [turn.share for turn in self.rounds]
        return min(shares), median(shares), max(shares)


def seconds_of(action: Callable[[], object], platform: Platform) -> float:
    platform.synchronize()
    start = time.perf_counter()
    action()
    platform.synchronize()
    return time.perf_counter() - start


def measure(
    action: Callable[[], object],
    flops: float,
    platform: Platform,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    repeats: int = 5,
) -> Timing:
    """Run `action`, of `flops` FLOP, once to warm up, then `repeats` times in turn with products [n, k] x [k, m]."""
    n, k, m = shape
    device = platform.device()
    a, b = (torch.randn(size, device=device).to(dtype) for size in ((n, k), (k, m)))
    product = 2 * n * k * m
    count = max(1, round(flops / product))

    def products() -> None:
        for _ in range(count):
            a @ b

    action()
    rounds = []
    for _ in range(repeats):
        rate = count * product / seconds_of(products, platform)
        rounds.append(Round(flops, seconds_of(action, platform), rate))
    return Timing(rounds)


def alternate(actions: list[Callable[[], object]], platform: Platform, repeats: int = 3) -> list[float]:
    """Seconds of each action's fastest run; they take turns, so a slow minute hits all alike."""
    for action in actions:
        action()
    rounds = [[seconds_of(action, platform) for action in actions] for _ in range(repeats)]
    return [min(times) for times in zip(*rounds, strict=True)]
