"""Autocast to bfloat16 for tensors on the meta device, which torch.autocast does not support."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
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
        self, function: Callable[..., Any], types: Collection[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function in _NARROW:
            args = tuple(self._to(value, torch.bfloat16) for value in args)
        elif function in _WIDE:
            args = tuple(self._to(value, torch.float32) for value in args)
        return function(*args, **(kwargs or {}))

    def _to(self, value: object, dtype: torch.dtype) -> object:
        if not isinstance(value, Tensor) or value.dtype == dtype or value.dtype not in (torch.float32, torch.bfloat16):
            return value
        if not (value.is_leaf and value.requires_grad and dtype is torch.bfloat16):
            return value.to(dtype)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(dtype)
        return self._cast[id(value)]


def run_inside(block: nn.Module, make_context: Callable[[], AbstractContextManager]) -> None:
    """Open a new context around every call of `block`, also when a backward computes it again.

    Hooks do it: they run in the recomputation too, which a context around the forward does not reach.
    """
    contexts: list[AbstractContextManager] = []

    def enter(module: nn.Module, args: tuple) -> None:
        contexts.append(make_context())
        contexts[-1].__enter__()

    def leave(module: nn.Module, args: tuple, outputs: object) -> None:
        contexts.pop().__exit__(None, None, None)

    block.register_forward_pre_hook(enter)
    block.register_forward_hook(leave, always_call=True)  # a recomputation ends early, by an exception
