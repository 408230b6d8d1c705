"""Tensor parallelism of attention and MLPs: the ranks of a group share the heads and the hidden units of each block.

The projection into heads or hidden units is column-parallel: each rank holds some of its outputs. The projection back is
row-parallel: each rank holds some of its inputs, and the results are summed. That is one all-reduce per attention or MLP
and direction (Shoeybi et al. 2019, arXiv:1909.08053, section 3). A module is sharded if its linear layers are named
`qkv`, `proj` or `q_linear`, `kv_linear`, `proj` (attention) or `fc1`, `fc2` (MLP), as those of most denoisers are.
The layers are ours because ColossalAI's do not run under autocast; its ShardFormer installs them
(colossal/tensor_policy.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from opensora.errors import ConfigError
from opensora.parallel import collectives

COLUMN_PARALLEL = {"qkv": 3, "q_linear": 1, "kv_linear": 2, "fc1": 1}  # name -> parts that each hold all heads or units
ROW_PARALLEL = ("proj", "fc2")
MLP = ("fc1", "fc2")
_SELF_ATTENTION, _CROSS_ATTENTION = ("qkv", "proj"), ("q_linear", "kv_linear", "proj")
_HEAD_NORMS = ("q_norm", "k_norm")  # every rank holds them whole and applies them to its own heads only


@dataclass(frozen=True)
class TensorShard:
    """The sharding of a parameter: `parts` equal stretches along `dim`, and a rank holds its share of each stretch.

    A fused qkv has three parts, so that a rank's rows are its heads' q, k and v.
    """

    group: dist.ProcessGroup
    dim: int
    parts: int = 1

    def shard(self, whole: Tensor) -> Tensor:
        """This rank's share, a copy."""
        stretches = whole.unflatten(self.dim, (self.parts, -1))
        pieces = stretches.chunk(collectives.world_size(self.group), dim=self.dim + 1)
        return pieces[dist.get_rank(self.group)].flatten(self.dim, self.dim + 1).contiguous()

    def gather(self, shard: Tensor) -> Tensor:
        """The whole, on every rank of the group."""
        rows = collectives.gather_rows(shard, self.group)
        pieces = [row.unflatten(self.dim, (self.parts, -1)) for row in rows]
        return torch.cat(pieces, dim=self.dim + 1).flatten(self.dim, self.dim + 1)


class _GroupContext(FunctionCtx):
    group: dist.ProcessGroup


class CopyToTensorRegion(Function):
    """Megatron's f: identity in the forward, all-reduce in the backward."""

    @staticmethod
    def forward(ctx: _GroupContext, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _GroupContext, grad: Tensor) -> tuple[Tensor, None]:
        return collectives.sum_over_ranks(grad.contiguous(), ctx.group), None


class ReduceFromTensorRegion(Function):
    """Megatron's g: all-reduce in the forward, identity in the backward."""

    @staticmethod
    def forward(ctx: _GroupContext, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return collectives.sum_over_ranks(x.contiguous(), group)

    @staticmethod
    def backward(ctx: _GroupContext, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ParallelLinear(nn.Linear):
    """shards: how its sharded parameters are sharded, by name."""

    group: dist.ProcessGroup
    shards: dict[str, TensorShard]

    @classmethod
    def from_native_module(cls, module: nn.Linear, process_group: dist.ProcessGroup, parts: int = 1) -> Self:
        """A layer with this rank's share of the parameters of `module`; they stay the same `nn.Parameter` objects.

        ShardFormer calls it and puts the result in the place of `module`.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.weight, layer.bias = module.weight, module.bias
        layer.group = process_group
        layer.shards = cls.shards_of(process_group, parts, module.bias is not None)
        for name, spec in layer.shards.items():
            parameter = layer.get_parameter(name)
            parameter.data = spec.shard(parameter.data)
        layer.out_features, layer.in_features = layer.weight.shape
        return layer.train(module.training)

    @staticmethod
    def shards_of(group: dist.ProcessGroup, parts: int, bias: bool) -> dict[str, TensorShard]:
        raise NotImplementedError


class ColumnParallelLinear(_ParallelLinear):
    """x [..., in] -> this rank's share of the outputs, [..., out / ranks]."""

    @staticmethod
    def shards_of(group: dist.ProcessGroup, parts: int, bias: bool) -> dict[str, TensorShard]:
        return {name: TensorShard(group, 0, parts) for name in (("weight", "bias") if bias else ("weight",))}

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(CopyToTensorRegion.apply(input, self.group))


class RowParallelLinear(_ParallelLinear):
    """This rank's share of the inputs, [..., in / ranks] -> [..., out], summed over the ranks.

    Every rank holds the whole bias and adds it after the sum.
    """

    @staticmethod
    def shards_of(group: dist.ProcessGroup, parts: int, bias: bool) -> dict[str, TensorShard]:
        return {"weight": TensorShard(group, 1, parts)}

    def forward(self, input: Tensor) -> Tensor:
        out = ReduceFromTensorRegion.apply(F.linear(input, self.weight), self.group)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def tensor_shards(model: nn.Module) -> dict[str, TensorShard]:
    """Name of each sharded parameter -> how it is sharded. Every rank holds the others whole."""
    return {
        f"{path}.{name}": spec
        for path, module in model.named_modules()
        if isinstance(module, _ParallelLinear)
        for name, spec in module.shards.items()
    }


def partial_grad_names(model: nn.Module) -> set[str]:
    """Names of whole parameters whose gradient comes from this rank's heads only, so that it must be summed."""
    return {
        f"{path}.{norm}.{name}"
        for path, module in model.named_modules()
        if any(isinstance(child, _ParallelLinear) for child in module.children())
        for norm in _HEAD_NORMS
        for name, _ in getattr(module, norm, nn.Identity()).named_parameters()
    }


def sequence_subgroup(
    sample_group: dist.ProcessGroup | None, tensor_size: int, timeout: timedelta | None
) -> dist.ProcessGroup | None:
    """The ranks that share a sample's tokens, out of those that share the sample: `tensor_size` ranks share each token.

    They are consecutive, as in ColossalAI's mesh of data x tensor x sequence. All ranks call it.
    timeout: of the new group's collectives.
    """
    if tensor_size == 1:
        return sample_group
    size = collectives.world_size(sample_group) // tensor_size
    group: dist.ProcessGroup | None = None
    for first in range(0, collectives.world_size(), size):  # all ranks must make every group
        candidate = dist.new_group(list(range(first, first + size)), timeout=timeout)
        if isinstance(candidate, dist.ProcessGroup):  # the ranks of other groups get a number
            group = candidate
    return group


def check_heads(model: nn.Module, size: int) -> None:
    """Raise ConfigError unless groups of `size` ranks can share the heads of every attention of `model`."""
    attentions = [module for module, linears in _shardable(model) if linears != MLP]
    name = type(model).__name__
    if size > 1 and not attentions:
        raise ConfigError(
            f"plugin_config.tp_size: {size} for {name}, which has no attention that can be cut; allowed: 1 for it; set 1, "
            "or use sp_size or plugin 'fsdp'"
        )
    for heads in sorted({module.num_heads for module in attentions}):
        if heads % size:
            raise ConfigError(
                f"plugin_config.tp_size: {size} for the {heads} heads of {name}; allowed: a divisor of {heads}; change it"
            )


def sharded_linears(model: nn.Module, size: int) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """(module, names of its linear layers) for all modules that `size` ranks share.

    An MLP whose hidden units they do not divide stays whole.
    """
    for module, linears in _shardable(model):
        if size > 1 and (linears != MLP or module.fc1.out_features % size == 0):
            yield module, linears


def _shardable(model: nn.Module) -> Iterator[tuple[Any, tuple[str, ...]]]:
    for module in model.modules():
        for linears in (_SELF_ATTENTION, _CROSS_ATTENTION, MLP):
            complete = all(isinstance(getattr(module, name, None), nn.Linear) for name in linears)
            if complete and (linears == MLP or hasattr(module, "num_heads")):
                yield module, linears
