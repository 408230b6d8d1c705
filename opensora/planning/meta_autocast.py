"""What autocast does to bfloat16 runs, for tensors on the meta device, which torch.autocast does not know."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# torch's lists for accelerators (torch.amp, "Autocast Op Reference"), as far as models here use them.
_NARROW = {
    *(F.linear, F.conv2d, F.conv3d, F.scaled_dot_product_attention),
    *(torch.matmul, torch.bmm, torch.baddbmm, torch.addmm, torch.mm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm, torch.conv2d, torch.conv3d),
}
_WIDE = {
    *(F.layer_norm, F.group_norm, F.softmax, F.mse_loss, torch.softmax, torch.rsqrt, torch.pow, torch.exp, torch.log),
    *(torch.sum, torch.norm, Tensor.softmax, Tensor.rsqrt, Tensor.pow, Tensor.exp, Tensor.log, Tensor.sum, Tensor.norm),
}


class MetaAutocast(TorchFunctionMode):
    """Casts arguments as torch.autocast would. A float32 weight is cast once per forward and kept for the backward."""

    def __init__(self) -> None:
        super().__init__()
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function in _NARROW:
            args = tuple(self._to(value, torch.bfloat16) for value in args)
        elif function in _WIDE:
            args = tuple(self._to(value, torch.float32) for value in args)
        return function(*args, **(kwargs or {}))

    def _to(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or value.dtype == dtype or value.dtype not in (torch.float32, torch.bfloat16):
            return value
        if not (value.is_leaf and value.requires_grad and dtype is torch.bfloat16):
            return value.to(dtype)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(dtype)
        return self._cast[id(value)]


def autocast_on_meta(block: nn.Module) -> None:
    """Have `block` run under MetaAutocast wherever it is called: what a backward computes again is out of a mode's reach."""
    block.__class__ = _casting(type(block))  # type: ignore[arg-type]


@functools.cache
def _casting(block_class: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with MetaAutocast():
            return block_class.forward(self, *args, **kwargs)

    return type(block_class.__name__, (block_class,), {"forward": forward})
