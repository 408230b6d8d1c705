"""Sequence and tensor parallelism on paper: shapes, memory and traffic of one rank of a group that is not there."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from opensora.models.layers.seam import Seam
from opensora.parallel.sequence_parallel import Mode, SequenceSharding, install_seams
from opensora.parallel.tensor_parallel import ROW_PARALLEL, sharded_linears


class SimulatedSharding(SequenceSharding):
    """The first of `size` ranks, which holds as much as any."""

    def __init__(self, size: int):
        self.group, self.size, self.rank = None, size, 0
        self.full_lengths = {}
        self.sent = 0

    def all_gather(self, pieces: Tensor, piece: Tensor) -> None: ...

    def all_to_all(self, pieces: Tensor, parcels: Tensor) -> None: ...


def simulate_sequence_parallel(model: nn.Module, size: int, mode: Mode = "dsp") -> SimulatedSharding:
    """Fill the seams of a model on the meta device as for a group of `size`; its `sent` counts the bytes of one rank."""
    layout = SimulatedSharding(size)
    if size > 1:
        install_seams(model, layout, mode)
    return layout


def switched_axes(model: nn.Module, mode: Mode) -> set[str]:
    """What ranks that share tokens divide between them for attention: "frames", "heads" or both. Fills the seams."""
    simulate_sequence_parallel(model, 2, mode)
    installed = [each for each in model.modules() if isinstance(each, Seam) and each.op is not None]
    return {seam.axis for seam in installed if seam.kind == "switch"}


class SimulatedGroup:
    """Ranks that share heads and hidden units, of which this is one; `sent` counts its bytes."""

    def __init__(self, size: int):
        self.size, self.sent = size, 0

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """As of collectives: a copy, all-reduced."""
        self.sent += 2 * (self.size - 1) * x.nbytes // self.size
        return x.clone()


class _Enter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SimulatedGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.sum_over_ranks(grad), None


class _Leave(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SimulatedGroup) -> Tensor:
        return group.sum_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _IntoParts(nn.Linear):
    group: SimulatedGroup

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(_Enter.apply(input, self.group))


class _OutOfParts(nn.Linear):
    group: SimulatedGroup

    def forward(self, input: Tensor) -> Tensor:
        out = _Leave.apply(F.linear(input, self.weight), self.group)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def simulate_tensor_parallel(model: nn.Module, size: int) -> SimulatedGroup:
    """Give a model on the meta device the layers of one of `size` ranks that share heads and hidden units."""
    group = SimulatedGroup(size)
    for module, names in sharded_linears(model, size):
        if "fc1" not in names:
            module.num_heads //= size
        for name in names:
            linear = getattr(module, name)
            linear.__class__ = _OutOfParts if name in ROW_PARALLEL else _IntoParts
            linear.group = group
            out, into = linear.weight.shape
            shape = (out, into // size) if name in ROW_PARALLEL else (out // size, into)
            linear.weight = nn.Parameter(linear.weight.new_empty(shape), linear.weight.requires_grad)
            if linear.bias is not None and name not in ROW_PARALLEL:
                linear.bias = nn.Parameter(linear.bias.new_empty(out // size), linear.bias.requires_grad)
    return group
