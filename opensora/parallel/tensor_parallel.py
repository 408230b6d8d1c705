"""Tensor parallelism of attention and perceptrons: ranks share the heads and the hidden units of each block.

A projection into heads or hidden units keeps this rank's rows, the one out of them this rank's columns, and the results
are added up: one exchange per attention or perceptron and direction (Shoeybi et al. 2019, arXiv:1909.08053).
ColossalAI's ShardFormer puts the layers in under our policy, which goes by what a module is made of, so every denoiser
whose attention is `qkv`, `proj` or `q_linear`, `kv_linear`, `proj`, and whose perceptrons are `fc1`, `fc2`, is cut.
The layers are ours because ColossalAI's do not run under autocast. Written against colossalai 0.5.0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.world import current, set_timeout
from opensora.registry import PLATFORMS, names

_INTO = {"qkv": 3, "q_linear": 1, "kv_linear": 2, "fc1": 1}  # parts that each hold all heads or hidden units
ROW_PARALLEL = ("proj", "fc2")
_SELF, _CROSS, _PERCEPTRON = ("qkv", "proj"), ("q_linear", "kv_linear", "proj"), ("fc1", "fc2")
_SEES_PART = "sees_part"  # a mark on parameters
_BY_HEAD = ("q_norm", "k_norm")  # their weights are whole, and see this rank's heads only


@dataclass(frozen=True)
class Cut:
    """How a parameter is cut: as `parts` equal stretches along `dim`, of each of which a rank has its own piece."""

    group: dist.ProcessGroup
    dim: int
    parts: int = 1

    def own(self, whole: Tensor) -> Tensor:
        """This rank's part, a copy."""
        stretches = whole.unflatten(self.dim, (self.parts, -1))
        pieces = stretches.chunk(collectives.world_size(self.group), dim=self.dim + 1)
        return pieces[dist.get_rank(self.group)].flatten(self.dim, self.dim + 1).contiguous()

    def gather(self, own: Tensor) -> Tensor:
        """The whole, on every rank of the group."""
        rows = collectives.gather_rows(own, self.group)
        pieces = [row.unflatten(self.dim, (self.parts, -1)) for row in rows]
        return torch.cat(pieces, dim=self.dim + 1).flatten(self.dim, self.dim + 1)


def shard_spec(parameter: nn.Parameter) -> Cut | None:
    """How this parameter was cut; None for one that every rank holds whole."""
    return getattr(parameter, "tensor_cut", None)


def has_partial_grad(parameter: nn.Parameter) -> bool:
    """Whether a whole parameter gets gradients from this rank's heads only, so that they must be added up."""
    return getattr(parameter, _SEES_PART, False)


class _Enter(Function):
    """Before a cut layer: every rank has the whole input, and a part of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return collectives.sum_over_ranks(grad.contiguous(), ctx.group), None


class _Leave(Function):
    """After a cut layer: every rank has a part of the sum, and the whole of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return collectives.sum_over_ranks(x.contiguous(), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _CutLinear(nn.Linear):
    group: dist.ProcessGroup

    @classmethod
    def from_native_module(cls, module: nn.Linear, process_group: dist.ProcessGroup, parts: int = 1) -> Self:
        """The same module with this rank's part of its parameters; they stay the same objects."""
        module.__class__ = cls
        assert isinstance(module, cls)
        module.group = process_group
        module.shard_(parts)
        module.out_features, module.in_features = module.weight.shape
        return module

    def shard_(self, parts: int) -> None:
        raise NotImplementedError


class ColumnParallelLinear(_CutLinear):
    """x [..., in] -> this rank's part of the outputs."""

    def shard_(self, parts: int) -> None:
        _keep(self.weight, Cut(self.group, 0, parts))
        if self.bias is not None:
            _keep(self.bias, Cut(self.group, 0, parts))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(_Enter.apply(input, self.group))


class RowParallelLinear(_CutLinear):
    """This rank's part of the inputs -> [..., out], added up over the ranks; the bias is whole and comes last."""

    def shard_(self, parts: int) -> None:
        _keep(self.weight, Cut(self.group, 1, parts))

    def forward(self, input: Tensor) -> Tensor:
        out = _Leave.apply(F.linear(input, self.weight), self.group)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def _keep(parameter: Tensor, cut: Cut) -> None:
    parameter.data = cut.own(parameter.data)
    parameter.tensor_cut = cut  # type: ignore[attr-defined]


def sequence_subgroup(sample_group: dist.ProcessGroup | None, tensor_size: int) -> dist.ProcessGroup | None:
    """The ranks that share a sample's tokens, of those that share the sample: `tensor_size` of them share each token.

    They follow each other, as in ColossalAI's mesh of data x tensor x sequence. All ranks call it.
    """
    if tensor_size == 1:
        return sample_group
    size = collectives.world_size(sample_group) // tensor_size
    mine: Any = None
    for first in range(0, collectives.world_size(), size):
        made = dist.new_group(list(range(first, first + size)), timeout=current().timeout)
        if first <= collectives.rank() < first + size:
            mine = made
    return mine


def boost(model: nn.Module, tensor_size: int, token_size: int) -> tuple[Any, Any, Any]:
    """(booster, wrapped model, ColossalAI's plugin with its process groups).

    Raises ConfigError when the ranks cannot share the model's heads.
    """
    from colossalai.booster import Booster
    from colossalai.booster.plugin import HybridParallelPlugin
    from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule

    class TensorPlugin(HybridParallelPlugin):
        """Only what cuts the model: gradients are averaged by the engine, which knows what is cut."""

        def __del__(self) -> None: ...  # the process groups end with the world

        def supported_devices(self) -> list[str]:
            return names(PLATFORMS)

        def configure(
            self,
            model: nn.Module,
            optimizer: Any = None,
            criterion: Any = None,
            dataloader: Any = None,
            lr_scheduler: Any = None,
        ) -> tuple[Any, Any, Any, Any, Any]:
            groups = (self.mixed_dp_group, self.tp_group, self.sp_group)
            wrapped = HybridParallelModule(
                model, self.precision, self.shard_config, *groups, False, {}, self.custom_policy
            )
            return wrapped, optimizer, criterion, dataloader, lr_scheduler

    check_heads(model, tensor_size)
    plugin = TensorPlugin(
        tp_size=tensor_size,
        pp_size=1,
        sp_size=token_size,
        enable_sequence_parallelism=token_size > 1,  # for its mesh; the seams do it
        precision="fp32",
        zero_stage=0,
        custom_policy=_policy(model, tensor_size),
    )
    timeout = current().timeout
    if timeout is not None:  # ColossalAI's mesh takes none
        set_timeout(timeout, plugin.tp_group)
        set_timeout(timeout, plugin.mixed_dp_group)
    booster = Booster(plugin=plugin)
    wrapped, *_ = booster.boost(model)
    return booster, wrapped, plugin


def check_heads(model: nn.Module, size: int) -> None:
    """ConfigError unless groups of `size` ranks can share the heads of every attention of `model`."""
    attentions = [module for module, parts in _made_of(model) if parts != _PERCEPTRON]
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


def _made_of(model: nn.Module) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """(module, names of its linear layers) of what can be cut."""
    for module in model.modules():
        for parts in (_SELF, _CROSS, _PERCEPTRON):
            linear = all(isinstance(getattr(module, name, None), nn.Linear) for name in parts)
            if linear and (parts == _PERCEPTRON or hasattr(module, "num_heads")):
                yield module, parts


def sharded_linears(model: nn.Module, size: int) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """(module, names of its linear layers) of what `size` ranks share: not hidden units that they do not divide."""
    for module, parts in _made_of(model):
        if size > 1 and (parts != _PERCEPTRON or module.fc1.out_features % size == 0):
            yield module, parts


def _policy(model: nn.Module, size: int) -> Any:
    from colossalai.shardformer.policies.base_policy import (
        ModulePolicyDescription,
        Policy,
        SubModuleReplacementDescription,
    )

    class BlockPolicy(Policy):
        def config_sanity_check(self) -> None: ...

        def preprocess(self) -> nn.Module:
            return self.model

        def postprocess(self) -> nn.Module:
            return self.model

        def module_policy(self) -> dict:
            descriptions: dict[type, Any] = {}
            for module, parts in sharded_linears(self.model, size):
                descriptions[type(module)] = ModulePolicyDescription(
                    attribute_replacement={} if parts == _PERCEPTRON else {"num_heads": module.num_heads // size},
                    param_replacement=[_mark_norms],
                    sub_module_replacement=[
                        SubModuleReplacementDescription(name, RowParallelLinear)
                        if name in ROW_PARALLEL
                        else SubModuleReplacementDescription(name, ColumnParallelLinear, {"parts": _INTO[name]})
                        for name in parts
                    ],
                )
            return descriptions

    return BlockPolicy()


def _mark_norms(module: nn.Module) -> None:
    for name in _BY_HEAD:
        for parameter in getattr(module, name, nn.Identity()).parameters():
            setattr(parameter, _SEES_PART, True)
