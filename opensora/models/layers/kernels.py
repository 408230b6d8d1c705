"""Kernels of an accelerator that models use in place of torch's own; `platforms/` supplies them, models only ask.

A device without an entry gets torch's kernels. `use_kernels` is called once, before a model runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # q [B,h,N,d], k v [B,h,M,d], mask or None


@dataclass(frozen=True)
class Kernels:
    """What a device offers; None = torch's own."""

    # (dtype, head width, whether there is a mask) -> the attention to use, or None where it does not apply
    attention: Callable[[torch.dtype, int, bool], Attention | None] | None = None
    layer_norm: Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor] | None = None  # x, weight, bias, eps
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] | None = None  # x, weight, eps


class Device(Protocol):
    """The part of a platform that knows its kernels."""

    name: str  # torch's device type

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Attention | None: ...

    def layer_norm(self) -> Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor] | None: ...

    def rms_norm(self) -> Callable[[Tensor, Tensor, float], Tensor] | None: ...


TORCH = Kernels()
_by_device: dict[str, Kernels] = {}


def use_kernels(device: Device) -> None:
    """From now on tensors on devices of this type go through the kernels it offers."""
    _by_device[device.name] = Kernels(device.attention, device.layer_norm(), device.rms_norm())


def kernels_for(device_type: str) -> Kernels:
    return _by_device.get(device_type, TORCH)
