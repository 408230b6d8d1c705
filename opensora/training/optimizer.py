"""Optimizers and learning-rate schedules.

A schedule is a function of the step alone, so it needs no state in a checkpoint.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import AdamW, Optimizer

from opensora.registry import LR_SCHEDULERS, OPTIMIZERS

Schedule = Callable[[int], float]


@OPTIMIZERS.register_module(name="AdamW")
def adamw(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """torch's fused AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), which CPU, CUDA and NPU implement."""
    return AdamW(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=True)


def _warm(step: int, warmup_steps: int) -> float:
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


@LR_SCHEDULERS.register_module(name="constant")
def constant(steps: int, warmup_steps: int) -> Schedule:
    """Factor 1 after a linear warm-up."""
    return lambda step: _warm(step, warmup_steps)


@LR_SCHEDULERS.register_module(name="linear")
def linear(steps: int, warmup_steps: int, end_factor: float = 0.0) -> Schedule:
    """Warm-up, then a linear decay from 1 to `end_factor` at the last step."""

    def factor(step: int) -> float:
        done = _progress(step, steps, warmup_steps)
        return _warm(step, warmup_steps) * (1 + (end_factor - 1) * done)

    return factor


@LR_SCHEDULERS.register_module(name="cosine")
def cosine(steps: int, warmup_steps: int, end_factor: float = 0.0) -> Schedule:
    """Warm-up, then a cosine decay from 1 to `end_factor` (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5)."""

    def factor(step: int) -> float:
        done = _progress(step, steps, warmup_steps)
        return _warm(step, warmup_steps) * (end_factor + (1 - end_factor) * 0.5 * (1 + math.cos(math.pi * done)))

    return factor


def _progress(step: int, steps: int, warmup_steps: int) -> float:
    """0 at the end of the warm-up, 1 at the last step."""
    return min(1.0, max(0.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps)))
