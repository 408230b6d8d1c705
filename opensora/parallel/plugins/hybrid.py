"""hybrid: heads and hidden units of each block over `tp_size` ranks, data over the others, through ColossalAI."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.colossal.accelerator import import_colossalai, set_accelerator
from opensora.parallel.colossal.tensor_policy import boost
from opensora.parallel.engine import Engine, Forward, OptimizerFactory, clip_factor, is_finite, place, squared_norm
from opensora.parallel.reducer import Reducer
from opensora.parallel.tensor_parallel import check_heads, partial_grad_names, tensor_shards
from opensora.parallel.world import World
from opensora.registry import PLUGINS


@PLUGINS.register_module(name="hybrid")
class Hybrid:
    """Tensor parallelism x sequence parallelism (`sp_size`) x data parallelism; bf16 runs the forward under autocast.

    tp_size: ranks that share the heads of each block; they see the same samples. Parameters, gradients and optimizer
    state of attention and perceptrons are cut; the rest is whole on every rank. pp_size: ranks in a row that each have
    some of the blocks; 1 only. bucket_cap_mb: as in ddp.
    """

    def __init__(self, tp_size: int = 1, pp_size: int = 1, bucket_cap_mb: int = 25):
        if tp_size < 1:
            raise ConfigError(f"plugin_config.tp_size: {tp_size} found; allowed: 1 and more; remove the key for 1")
        if pp_size != 1:
            raise ConfigError(
                f"plugin_config.pp_size: {pp_size} found; allowed: 1; ColossalAI runs pipelines of language models and of "
                "their losses, which no denoiser here is; use tp_size, sp_size or plugin 'fsdp'"
            )
        if bucket_cap_mb < 1:
            raise ConfigError(
                f"plugin_config.bucket_cap_mb: {bucket_cap_mb} found; allowed: 1 and more MiB; remove the key for 25"
            )
        self.tp_size = tp_size
        self.bucket_bytes = bucket_cap_mb * 2**20

    def check(self, world: World) -> None:
        """ConfigError without colossalai, and when the ranks that share a sample are not a multiple of tp_size."""
        import_colossalai()
        if world.sequence_size % self.tp_size:
            raise ConfigError(
                f"plugin_config.tp_size: {self.tp_size}, but the ranks share samples in groups of {world.sequence_size}; "
                f"allowed: groups of a multiple of {self.tp_size} ranks; start a number of ranks that tp_size divides"
            )

    def apply(
        self,
        model: nn.Module,
        optimizer_factory: OptimizerFactory,
        dtype: Literal["bf16", "fp32"],
        grad_clip: float,
        world: World,
    ) -> "HybridEngine":
        self.check(world)
        check_heads(model, self.tp_size)
        place(model, world.device)
        return HybridEngine(model, optimizer_factory, dtype, grad_clip, world, self.tp_size, self.bucket_bytes)


class HybridEngine(Engine):
    def __init__(
        self,
        module: nn.Module,
        optimizer_factory: OptimizerFactory,
        dtype: Literal["bf16", "fp32"],
        grad_clip: float,
        world: World,
        tensor_size: int,
        bucket_bytes: int,
    ):
        super().__init__(module, world, grad_clip)
        set_accelerator(world.device)
        self._booster, wrapped, plugin = boost(module, tensor_size, world.sequence_size // tensor_size, world.timeout)
        self._tensor_size, self._tensor_group = tensor_size, plugin.tp_group
        self.model = Forward(wrapped, dtype, world.device, cast_inputs=False)
        self.optimizer = optimizer_factory(list(self.trainable.values()))
        self._cuts = {name: spec for name, spec in tensor_shards(module).items() if name in self.trainable}
        self._partial = [self.trainable[name] for name in sorted(partial_grad_names(module) & self.trainable.keys())]
        self._cut = [each for name, each in self.trainable.items() if name in self._cuts]
        self._whole = [each for name, each in self.trainable.items() if name not in self._cuts]
        # What is whole is averaged over all ranks, so that it cannot drift apart; a piece over those that hold the same.
        self._reducers = [Reducer(self._whole, bucket_bytes), Reducer(self._cut, bucket_bytes, plugin.mixed_dp_group)]

    def backward(self, loss: Tensor, last: bool) -> None:
        for reducer in self._reducers:
            reducer.begin(last)
        loss.backward()
        for reducer in self._reducers:
            reducer.end()
        if last and self._tensor_size > 1:
            for parameter in self._partial:
                if parameter.grad is not None:
                    parameter.grad.mul_(self._tensor_size)  # of the sum over heads, the mean over ranks took a part

    def step(self, accept: Callable[[float], bool] = is_finite) -> float:
        whole, cut = ([each.grad for each in part if each.grad is not None] for part in (self._whole, self._cut))
        square = squared_norm(whole) + collectives.sum_over_ranks(squared_norm(cut), self._tensor_group)
        norm = square.sqrt().item()
        if accept(norm) and is_finite(norm):
            factor = clip_factor(norm, self.grad_clip)
            if factor < 1 and whole + cut:
                torch._foreach_mul_(whole + cut, factor)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def even(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: collectives.shard(self._gather(name, piece).flatten()).clone() if name in self._cuts else piece
            for name, piece in pieces.items()
        }

    def take(self, pieces: Mapping[str, Tensor], even: Mapping[str, Tensor]) -> None:
        for name, piece in pieces.items():
            part = even[name]
            if name in self._cuts:
                whole = collectives.gather_shards(part, self.shapes[name].numel()).view(self.shapes[name])
                part = self._cuts[name].shard(whole).flatten()
            piece.copy_(part)

    def _gather(self, name: str, piece: Tensor) -> Tensor:
        return self._cuts[name].gather(piece.view(self.trainable[name].shape))

    def _master(self, name: str) -> Tensor:
        return self.trainable[name]

    def _own(self, name: str, tensor: Tensor) -> Tensor:
        flat = tensor.detach().view(-1)
        return flat if name in self._cuts else collectives.shard(flat)

    def _refresh(self) -> None:
        for name, parameter in self.trainable.items():
            if name in self._cuts:
                continue
            moments = [each for each in self.optimizer.state[parameter].values() if isinstance(each, Tensor)]
            for whole in (parameter, *(each for each in moments if each.dim() > 0)):
                flat = whole.detach().view(-1)
                flat.copy_(collectives.gather_shards(self._own(name, whole), flat.numel()))
