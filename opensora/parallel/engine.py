"""Engine: a model and its optimizer under one plugin; the training loop talks to nothing else of parallel training.

One optimizer step of the loop:

    for each micro-batch:
        with engine.accumulating(last=...):
            engine.backward(loss_of(engine.model))
    norm = engine.grad_norm()
    engine.update() or engine.discard_gradients()

Every plugin keeps float32 masters; `engine_state.py` saves and loads them.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from opensora.parallel import collectives
from opensora.parallel.engine_state import EngineState
from opensora.parallel.world import World

Precision = Literal["bf16", "fp32"]
OptimizerFactory = Callable[[Sequence[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class EngineOptions:
    """The settings of an engine that do not belong to its plugin."""

    make_optimizer: OptimizerFactory
    dtype: Precision
    grad_clip: float  # largest norm of the gradients; 0 means no clipping
    world: World


class PrecisionWrapper:
    """Calls the model in the run's precision: bfloat16 or float32.

    bf16_weights: in a bf16 run the weights are bfloat16, as in sampling, so floating inputs of two and more dimensions are
    cast. One number per sample (a timestep, frames per second) stays float32: bfloat16 rounds timestep 999 to 1000.
    Otherwise the weights are float32, and autocast narrows matrix products. It would widen norms and sums of bfloat16
    tensors to float32 on devices, and not on the CPU; so it is around float32 weights only.
    """

    def __init__(self, module: nn.Module, dtype: Precision, device: torch.device, bf16_weights: bool):
        self._module = module
        self._device = device
        self._casts_inputs = dtype == "bf16" and bf16_weights
        self._autocasts = dtype == "bf16" and not bf16_weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._casts_inputs:
            args, kwargs = tree_map(_to_bf16, (args, kwargs))
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._autocasts):
            return self._module(*args, **kwargs)


def _to_bf16(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1:
        return value.to(torch.bfloat16)
    return value


class Engine(EngineState):
    """See the module's docstring. `model` is called for a forward; `module` is the bare nn.Module."""

    model: Callable[..., Any]
    sees_gradients = True  # torch.autograd.grad for `trainable` gives this rank's gradients

    def __init__(self, module: nn.Module, options: EngineOptions):
        super().__init__(module, options.world)
        self.grad_clip = options.grad_clip
        self._norm = math.nan  # of the gradients between `grad_norm` and `update`

    def _set_optimizer(self, optimizer: Optimizer) -> None:
        """Every engine calls it once, with the optimizer that updates the masters."""
        self.optimizer = optimizer
        self._base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.base_lr = self._base_lrs[0]  # as configured, before any schedule; logged for the whole

    @abstractmethod
    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Open it around forward and backward of one micro-batch, one `backward` in each.

        `last` ends the optimizer step's accumulation: the gradients are then averaged over the data ranks. Every rank
        must bring the same number of micro-batches.
        """

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, which is already divided by the number of this rank's micro-batches."""
        loss.backward()

    def grad_norm(self) -> float:
        """The 2-norm of all gradients over all ranks, before clipping; it may be inf or NaN. All ranks call.

        Call it once a step, after the last micro-batch. No exchange of gradients is left to do afterwards.
        """
        self._norm = self._squared_grad_norm().sqrt().item()
        return self._norm

    def update(self, lr_factor: float = 1.0) -> None:
        """Clip by the norm that `grad_norm` returned, step with `lr_factor` times each group's rate, clear. All ranks call.

        Raises ValueError when that norm is not finite, or was not measured in this step.
        """
        self._set_lr(lr_factor)
        factor, gradients = clip_factor(self._norm, self.grad_clip), self._gradients()
        if factor < 1 and gradients:
            torch._foreach_mul_(gradients, factor)
        self.optimizer.step()
        self.discard_gradients()

    def discard_gradients(self) -> None:
        """Clear what was accumulated. Weights, moments and the optimizer's step count stay as they are."""
        self.optimizer.zero_grad(set_to_none=True)
        self._norm = math.nan

    def _gradients(self) -> list[Tensor]:
        """The gradients on this rank, averaged."""
        return [each.grad for each in self.trainable.values() if each.grad is not None and each.numel()]

    def _squared_grad_norm(self) -> Tensor:
        """The sum of squares of all gradients; a plugin whose ranks hold parts of them adds these up."""
        return squared_norm(self._gradients())

    def _set_lr(self, lr_factor: float) -> None:
        for group, base_lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base_lr * lr_factor


def broadcast_and_move(model: nn.Module, device: torch.device) -> None:
    """Move `model` to the device in float32, laid out flat, with rank 0's numbers on every rank."""
    model.to(device, torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # shards are views of the flat parameter
    collectives.broadcast_tensors([*model.parameters(), *model.buffers()])


def clip_factor(norm: float, grad_clip: float) -> float:
    """The factor that brings gradients of this norm to at most `grad_clip`; 0 switches clipping off.

    Raises ValueError when the norm is not finite: such gradients can only be discarded.
    """
    if not math.isfinite(norm):
        raise ValueError(f"gradient norm: {norm} found; allowed: a finite number; call grad_norm and check it first")
    return 1.0 if grad_clip <= 0 else min(1.0, grad_clip / (norm + 1e-6))


def squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of squares of all elements: float32, zero-dimensional, on the CPU."""
    if not gradients:
        return torch.zeros(())
    # one copy to the host, and float64 there: some devices have none
    return torch.stack(torch._foreach_norm(list(gradients))).cpu().double().square().sum().float()
