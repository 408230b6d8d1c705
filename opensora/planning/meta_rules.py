"""The results of frequent operations on the meta device: tensors of the shapes, strides and dtypes that torch's own rules give.

Torch's rules are programs in Python, most of the time of a profile; these allocate the result and no more.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    ones = (1,) * len(shape)
    mean, rstd = (x.new_empty((*x.shape[: x.dim() - len(shape)], *ones), dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), mean, rstd


def _layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: list[bool],
) -> tuple[Tensor | None, ...]:
    return tuple(
        torch.empty_like(each) if needed and each is not None else None
        for each, needed in zip((x, weight, bias), mask, strict=True)
    )


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    inner: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if any(each is not None and each.dtype is not x.dtype for each in (weight, bias)):
        return aten.native_group_norm(x, weight, bias, batch, channels, inner, groups, eps)
    mean, rstd = (x.new_empty((batch, groups)) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), mean, rstd


def _addmm(bias: Tensor, one: Tensor, other: Tensor, **factors: Any) -> Tensor:
    if not bias.dtype == one.dtype == other.dtype:
        return aten.addmm(bias, one, other, **factors)
    return one.new_empty((one.shape[0], other.shape[1]))


def _pointwise(function: OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Of contiguous tensors of one floating dtype, the largest of which has the shape of the result; of others torch's."""
    if any(isinstance(each, complex) for each in args):
        return function(*args, **kwargs)
    tensors = [each for each in args if isinstance(each, Tensor)]
    values = tensors[1:] if function is aten.where.self else tensors  # its first is the condition
    largest = max(tensors, key=lambda each: (each.numel(), each.dim()))
    if all(each.is_contiguous() and _stretches(each.shape, largest.shape) for each in tensors) and all(
        each.dtype is values[0].dtype and each.is_floating_point() for each in values
    ):
        return values[0].new_empty(largest.shape)
    return function(*args, **kwargs)


def _stretches(shape: torch.Size, larger: torch.Size) -> bool:
    """True if a tensor of this shape can be broadcast to the larger one."""
    pairs = zip(reversed(shape), reversed(larger))
    return shape == larger or (len(shape) <= len(larger) and all(n in (1, m) for n, m in pairs))


_POINTWISE = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.where.self),
    *(aten.gelu.default, aten.gelu_backward.default, aten.silu.default, aten.neg.default),
)
RULES: dict[OpOverload, Callable[..., Any]] = {
    # Importing colossalai replaces torch's rules, and its rule for the backward fails on norms without weights.
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.addmm.default: _addmm,
    **{function: partial(_pointwise, function) for function in _POINTWISE},
}
