"""One rank of a sequence-parallel or tensor-parallel group, simulated: its shapes, memory and traffic without the others."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from opensora.models.layers.seam import Seam
from opensora.parallel.sequence_parallel import Mode, SequenceSharding, install_seams
from opensora.parallel.tensor_parallel import ROW_PARALLEL, sharded_linears


class SimulatedSequenceGroup(SequenceSharding):
    """The first of `size` ranks, which holds as much as any; `sent` counts its bytes."""

    def __init__(self, size: int):
        self.group, self.size, self.rank = None, size, 0
        self.full_lengths = {}
        self.sent = 0

    def all_gather(self, pieces: Tensor, piece: Tensor) -> None: ...

    def all_to_all(self, pieces: Tensor, parcels: Tensor) -> None: ...


def simulate_sequence_parallel(model: nn.Module, size: int, mode: Mode = "dsp") -> SimulatedSequenceGroup:
    """Install the seams of a model on the meta device as for a group of `size` ranks."""
    group = SimulatedSequenceGroup(size)
    if size > 1:
        install_seams(model, group, mode)
    return group


def shared_axes(model: nn.Module, mode: Mode) -> set[str]:
    """The axes that ranks divide inside attention when they share tokens: "frames", "heads" or both. Installs the seams."""
    simulate_sequence_parallel(model, 2, mode)
    active = [seam for seam in model.modules() if isinstance(seam, Seam) and seam.op is not None]
    return {seam.axis for seam in active if seam.kind == "switch"}


class SimulatedTensorGroup:
    """One rank of `size` that share heads and hidden units; `sent` counts its bytes."""

    def __init__(self, size: int):
        self.size, self.sent = size, 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """A copy, as collectives.sum_over_ranks returns."""
        self.sent += 2 * (self.size - 1) * x.nbytes // self.size
        return x.clone()


class _GroupContext(FunctionCtx):
    group: SimulatedTensorGroup


class _AllReduceGradient(Function):
    @staticmethod
    def forward(ctx: _GroupContext, x: Tensor, group: SimulatedTensorGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _GroupContext, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.all_reduce(grad), None


class _AllReduceOutput(Function):
    @staticmethod
    def forward(ctx: _GroupContext, x: Tensor, group: SimulatedTensorGroup) -> Tensor:
        return group.all_reduce(x)

    @staticmethod
    def backward(ctx: _GroupContext, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _SimulatedLinear(nn.Module):
    """The part of a linear layer that one rank holds: rows of its weight, or columns."""

    def __init__(self, whole: nn.Linear, group: SimulatedTensorGroup, dim: int):
        super().__init__()
        self.group = group
        self.weight = _part(whole.weight, group.size, dim)
        self.bias = whole.bias if dim == 1 or whole.bias is None else _part(whole.bias, group.size, 0)


class _ColumnParallel(_SimulatedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_AllReduceGradient.apply(x, self.group), self.weight, self.bias)


class _RowParallel(_SimulatedLinear):
    def forward(self, x: Tensor) -> Tensor:
        out = _AllReduceOutput.apply(F.linear(x, self.weight), self.group)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def _part(parameter: Tensor, size: int, dim: int) -> nn.Parameter:
    shape = list(parameter.shape)
    shape[dim] //= size
    return nn.Parameter(parameter.new_empty(shape), parameter.requires_grad)


def simulate_tensor_parallel(model: nn.Module, size: int) -> SimulatedTensorGroup:
    """Give a model on the meta device the layers of one of `size` ranks that share heads and hidden units."""
    group = SimulatedTensorGroup(size)
    for module, names in list(sharded_linears(model, size)):
        if "fc1" not in names:
            module.num_heads //= size
        for name in names:
            linear = getattr(module, name)
            setattr(
                module,
                name,
                _RowParallel(linear, group, 1) if name in ROW_PARALLEL else _ColumnParallel(linear, group, 0),
            )
    return group
