"""Optimizers and learning-rate schedules.

A schedule is a function of the step alone, so it needs no state in a checkpoint.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
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


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], params: Sequence[nn.Parameter], lr_groups: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The groups of an optimizer: first the weights without a rate of their own, then one for each entry of `lr_groups`.

    named: the module's parameters. params: those that train. lr_groups: part of a name -> learning rate; of several parts
    in one name the first counts. Groups without a weight are left out.
    """
    names = {id(parameter): name for name, parameter in named}
    groups: dict[str | None, list[nn.Parameter]] = {part: [] for part in (None, *lr_groups)}
    for parameter in params:
        groups[next((part for part in lr_groups if part in names[id(parameter)]), None)].append(parameter)
    rates = {part: {"lr": rate} for part, rate in lr_groups.items()}
    return [{"params": members, **rates.get(part, {})} for part, members in groups.items() if members]  # type: ignore[arg-type]


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
