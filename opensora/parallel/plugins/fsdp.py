"""fsdp: torch's FSDP through ColossalAI. Parameters, gradients and optimizer state are cut over the ranks."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffload, MixedPrecision, ShardingStrategy

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.colossal.accelerator import import_colossalai, set_accelerator
from opensora.parallel.colossal.fsdp_adapter import FsdpPieces, boost
from opensora.parallel.engine import Engine, Forward, OptimizerFactory, clip_factor, is_finite, place, squared_norm
from opensora.parallel.reshard import even_ranges, redistribute
from opensora.parallel.world import World
from opensora.registry import PLUGINS

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@PLUGINS.register_module(name="fsdp")
class FullyShardedDataParallel:
    """bf16 gathers bfloat16 weights; the pieces a rank holds are float32 and their own masters.

    A unit is one of the model's `checkpoint_blocks`; what is outside of them is another. The ranks must use the same
    units in every micro-batch, though not the same parameters of them.
    reshard_after_forward: drop a unit's gathered weights after its forward and gather them again in the backward: less
        memory, half as much traffic again. communication_dtype: precision of gradients on the wire; bf16 halves their
        traffic and rounds them once more. cpu_offload: keep the pieces, their gradients and the optimizer's state in
        host memory; the update runs there too.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        communication_dtype: Literal["bf16", "fp32"] = "fp32",
        cpu_offload: bool = False,
    ):
        self.strategy = ShardingStrategy.FULL_SHARD if reshard_after_forward else ShardingStrategy.SHARD_GRAD_OP
        self.communication_dtype = _DTYPES[communication_dtype]
        self.cpu_offload = cpu_offload

    def check(self, world: World) -> None:
        """ConfigError without colossalai, and for cpu_offload on the CPU: torch would pin the memory for a device."""
        import_colossalai()
        if self.cpu_offload and world.device.type == "cpu":
            raise ConfigError(
                "plugin_config.cpu_offload: True on the CPU; allowed: False there, everything is in host memory already; "
                "remove the key"
            )

    def apply(
        self,
        model: nn.Module,
        optimizer_factory: OptimizerFactory,
        dtype: Literal["bf16", "fp32"],
        grad_clip: float,
        world: World,
    ) -> "FsdpEngine":
        self.check(world)
        place(model, world.device)
        options = {
            "sharding_strategy": self.strategy,
            "cpu_offload": CPUOffload(offload_params=True) if self.cpu_offload else None,
            "mixed_precision": MixedPrecision(
                param_dtype=_DTYPES[dtype],
                reduce_dtype=self.communication_dtype,
                cast_forward_inputs=False,  # Forward does, and knows what must stay float32
                cast_root_forward_inputs=False,
            ),
        }
        return FsdpEngine(model, optimizer_factory, dtype, grad_clip, world, options)


class FsdpEngine(Engine):
    sees_gradients = False  # its graphs know FSDP's flat tensors, on one rank too

    def __init__(
        self,
        module: nn.Module,
        optimizer_factory: OptimizerFactory,
        dtype: Literal["bf16", "fp32"],
        grad_clip: float,
        world: World,
        options: dict[str, Any],
    ):
        super().__init__(module, world, grad_clip)
        set_accelerator(world.device)
        blocks: list[nn.Module] = getattr(module, "checkpoint_blocks", list)()
        self._booster, wrapped = boost(module, blocks, world.device, **options)
        if dtype == "bf16":  # as FSDP does it to the trained ones
            for _, tensor in self._live_fixed():
                tensor.data = tensor.data.to(torch.bfloat16) if tensor.is_floating_point() else tensor.data
        self.optimizer = optimizer_factory(list(self.trainable.values()))
        self.model = Forward(wrapped, dtype, world.device, cast_inputs=True)
        self._pieces = FsdpPieces(wrapped)
        mine = self._pieces.ranges()
        held = collectives.gather_objects({name: mine[id(each)] for name, each in self.trainable.items()})
        self._have = {name: [ranges[name] for ranges in held] for name in self.trainable}
        self._even = even_ranges({name: shape.numel() for name, shape in self.shapes.items()})
        self._offloads = options["cpu_offload"] is not None
        self._earlier: dict[str, Tensor] = {}  # gradients of earlier micro-batches

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()  # every backward exchanges; the pieces of the gradients are added up in float32
        if self._offloads:
            self._add_up(last)

    def _add_up(self, last: bool) -> None:
        """FSDP adds up on the device only: gradients in host memory are written over by those of the next backward."""
        for name, parameter in self.trainable.items():
            earlier = self._earlier.pop(name, None)
            if parameter.grad is not None and earlier is not None:
                parameter.grad.add_(earlier)
            elif earlier is not None:
                parameter.grad = earlier
            if parameter.grad is not None and not last:
                self._earlier[name] = parameter.grad.clone()
                parameter.grad = None

    def step(self, accept: Callable[[float], bool] = is_finite) -> float:
        parameters = list(self.trainable.values())
        for parameter, used in zip(parameters, self._pieces.used_anywhere(parameters), strict=True):
            # untouched on every rank: no gradient, so that the optimizer leaves it alone as it does on one rank;
            # held by other ranks only: it must count steps all the same
            if not used:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [each.grad for each in parameters if each.grad is not None and each.numel()]
        norm = collectives.sum_over_ranks(squared_norm(gradients)).sqrt().item()
        if accept(norm) and is_finite(norm):
            factor = clip_factor(norm, self.grad_clip)
            if factor < 1 and gradients:
                torch._foreach_mul_(gradients, factor)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def even(self, pieces: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return redistribute(pieces, self._have, self._even)

    def take(self, pieces: Mapping[str, Tensor], even: Mapping[str, Tensor]) -> None:
        super().take(pieces, redistribute({name: even[name] for name in pieces}, self._even, self._have))

    def _master(self, name: str) -> Tensor:
        return self.trainable[name]

    def _own(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.detach().view(-1)

    def _refresh(self) -> None:
        self._pieces.drop_gathered()
