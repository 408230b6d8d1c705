"""Kernels of a device that models use in place of torch's own; the device's file in `platforms/` supplies them.

A tensor's device decides: models call `kernels_for(x.device.type)`. A device without a platform uses torch's kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from opensora.registry import PLATFORMS, constructor, names

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # q [B,h,N,d], k v [B,h,M,d], mask or None


@dataclass(frozen=True)
class Kernels:
    """Kernels of one device; None = torch's own."""

    # (dtype, head width, has a mask) -> attention kernel, or None where the device has none for them
    attention: Callable[[torch.dtype, int, bool], Attention | None] | None = None
    layer_norm: Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor] | None = None  # x, weight, bias, eps
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] | None = None  # x, weight, eps
    # (input, kernel size, padding) -> whether the device's convolution is wrong when it pads this input itself
    pads_wrongly: Callable[[Tensor, Sequence[int], Sequence[int]], bool] | None = None
    # (input) -> whether the device's gradient of the weights of a convolution over this input is wrong
    misjudges_weights: Callable[[Tensor], bool] | None = None
    launches: bool = False  # each operation is a launch: few large operations are faster than many small ones


class Device(Protocol):
    """The part of a platform that chooses its kernels."""

    name: str  # torch's device type
    launches_kernels: bool

    def attention(self, dtype: torch.dtype, head_dim: int, masked: bool) -> Attention | None: ...

    def layer_norm(self) -> Callable[[Tensor, Tensor | None, Tensor | None, float], Tensor] | None: ...

    def rms_norm(self) -> Callable[[Tensor, Tensor, float], Tensor] | None: ...

    def pads_wrongly(self, x: Tensor, kernel_size: Sequence[int], padding: Sequence[int]) -> bool: ...

    def misjudges_weights(self, x: Tensor) -> bool: ...


TORCH = Kernels()
_by_device: dict[str, Kernels] = {}


def use_kernels(device: Device) -> None:
    """Use the kernels of `device` for tensors on devices of its type, in place of those of the registered platform."""
    _by_device[device.name] = Kernels(
        device.attention,
        device.layer_norm(),
        device.rms_norm(),
        device.pads_wrongly,
        device.misjudges_weights,
        device.launches_kernels,
    )


def kernels_for(device_type: str) -> Kernels:
    """The kernels of the platform that is registered under torch's device type."""
    if device_type not in _by_device:
        if device_type in names(PLATFORMS):
            use_kernels(constructor(PLATFORMS, device_type)())
        else:
            _by_device[device_type] = TORCH
    return _by_device[device_type]
