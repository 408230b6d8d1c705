"""ddp: every rank holds the whole model and optimizer; gradients are averaged."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.engine import Engine, Forward, OptimizerFactory, clip_factor, is_finite, place, squared_norm
from opensora.parallel.reducer import Reducer
from opensora.parallel.world import World
from opensora.registry import PLUGINS


@PLUGINS.register_module(name="ddp")
class DataParallel:
    """bf16 runs the forward under autocast: the parameters stay float32 and are their own masters.

    bucket_cap_mb: gradients are sent in buckets of this many MiB, while the backward still runs.
    """

    def __init__(self, bucket_cap_mb: int = 25):
        if bucket_cap_mb < 1:
            raise ConfigError(
                f"plugin_config.bucket_cap_mb: {bucket_cap_mb} found; allowed: 1 and more MiB; remove the key for 25"
            )
        self.bucket_bytes = bucket_cap_mb * 2**20

    def check(self, world: World) -> None:
        """It runs everywhere."""

    def apply(
        self,
        model: nn.Module,
        optimizer_factory: OptimizerFactory,
        dtype: Literal["bf16", "fp32"],
        grad_clip: float,
        world: World,
    ) -> "DataParallelEngine":
        place(model, world.device)
        return DataParallelEngine(model, optimizer_factory, dtype, grad_clip, world, self.bucket_bytes)


class DataParallelEngine(Engine):
    def __init__(
        self,
        module: nn.Module,
        optimizer_factory: OptimizerFactory,
        dtype: Literal["bf16", "fp32"],
        grad_clip: float,
        world: World,
        bucket_bytes: int,
    ):
        super().__init__(module, world, grad_clip)
        self.model = Forward(module, dtype, world.device, cast_inputs=False)
        self.optimizer = optimizer_factory(list(self.trainable.values()))
        self._reducer = Reducer(list(self.trainable.values()), bucket_bytes)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._reducer.backward(loss, last)

    def step(self, accept: Callable[[float], bool] = is_finite) -> float:
        gradients = [each.grad for each in self.trainable.values() if each.grad is not None]
        norm = squared_norm(gradients).sqrt().item()
        if accept(norm) and is_finite(norm):
            factor = clip_factor(norm, self.grad_clip)
            if factor < 1 and gradients:
                torch._foreach_mul_(gradients, factor)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _master(self, name: str) -> Tensor:
        return self.trainable[name]

    def _own(self, name: str, tensor: Tensor) -> Tensor:
        return collectives.shard(tensor.detach().view(-1))

    def _refresh(self) -> None:
        for name, parameter in self.trainable.items():
            moments = [each for each in self.optimizer.state[parameter].values() if isinstance(each, Tensor)]
            for whole in (parameter, *(each for each in moments if each.dim() > 0)):
                flat = whole.detach().view(-1)
                flat.copy_(collectives.gather_shards(self._own(name, whole), flat.numel()))
