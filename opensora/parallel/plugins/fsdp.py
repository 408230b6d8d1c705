"""fsdp: torch's FSDP through ColossalAI. Parameters, gradients and optimizer state are cut over the ranks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffload, MixedPrecision, ShardingStrategy

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.colossal.accelerator import import_colossalai, set_accelerator
from opensora.parallel.colossal.fsdp_adapter import FlatParameters, boost
from opensora.parallel.engine import (
    Engine,
    EngineOptions,
    Precision,
    PrecisionWrapper,
    broadcast_and_move,
    squared_norm,
)
from opensora.parallel.plugins.base import Plugin
from opensora.parallel.reshard import even_ranges, redistribute
from opensora.parallel.step_costs import StepMemory, StepSizes, Traffic, ring_elements
from opensora.parallel.world import World
from opensora.registry import PLUGINS
from opensora.types import DTYPES


@PLUGINS.register_module(name="fsdp")
class FullyShardedDataParallel(Plugin):
    """bf16 gathers bfloat16 weights; the shards a rank holds are float32 and their own masters.

    A unit is one of the model's `checkpoint_blocks`; what is outside of them is another. The ranks must use the same
    units in every micro-batch, though not the same parameters of them.
    reshard_after_forward: drop a unit's gathered weights after its forward and gather them again in the backward: less
        memory, half as much traffic again. communication_dtype: precision of gradients on the wire; bf16 halves their
        traffic and rounds them once more. cpu_offload: keep the shards, their gradients and the optimizer's state in
        host memory; the update runs there too.
    """

    refused_tasks: ClassVar[Mapping[str, str]] = {
        "autoencoder": "encoder and decoder are called separately, and FSDP gathers weights only inside forward()"
    }

    def __init__(
        self,
        reshard_after_forward: bool = True,
        communication_dtype: Precision = "fp32",
        cpu_offload: bool = False,
    ):
        self.strategy = ShardingStrategy.FULL_SHARD if reshard_after_forward else ShardingStrategy.SHARD_GRAD_OP
        self.communication_dtype = DTYPES[communication_dtype]
        self.cpu_offload = cpu_offload

    def check(self, world: World) -> None:
        """ConfigError without colossalai, and for cpu_offload on the CPU: torch would pin the memory for a device."""
        import_colossalai()
        if self.cpu_offload and world.device.type == "cpu":
            raise ConfigError(
                "plugin_config.cpu_offload: True on the CPU; allowed: False there, everything is in host memory already; "
                "remove the key"
            )

    def apply(self, model: nn.Module, options: EngineOptions) -> "FsdpEngine":
        self.check(options.world)
        broadcast_and_move(model, options.world.device)
        settings = {
            "sharding_strategy": self.strategy,
            "cpu_offload": CPUOffload(offload_params=True) if self.cpu_offload else None,
            "mixed_precision": MixedPrecision(
                param_dtype=DTYPES[options.dtype],
                reduce_dtype=self.communication_dtype,
                cast_forward_inputs=False,  # PrecisionWrapper does, and knows what must stay float32
                cast_root_forward_inputs=False,
            ),
        }
        return FsdpEngine(model, options, settings)

    def memory(self, sizes: StepSizes) -> StepMemory:
        share, keeps_gathered = sizes.share, self.strategy is ShardingStrategy.SHARD_GRAD_OP
        waiting = int(4 * share) if sizes.micro_batches > 1 and not self.cpu_offload else 0
        # the unit being computed, the next one being gathered, and all parameters outside of the units
        gathered = sizes.width * (sizes.trained if keeps_gathered else sizes.outside + 2 * sizes.blocks)

        def backward(elements: int) -> tuple[float, float]:
            shards = 0 if self.cpu_offload else max(waiting, 4 * elements / sizes.ranks)
            return shards, gathered + self.communication_dtype.itemsize * (sizes.blocks if elements else 0)

        state = {"weights": 4 * share + sizes.width * sizes.fixed, "optimizer moments": 8 * share}
        return StepMemory(
            state={} if self.cpu_offload else state,
            waiting=waiting,
            backward=backward,
            update=[(0 if self.cpu_offload else 4 * share, 0)],
            update_bytes=28 * share,
            host=16 * share if self.cpu_offload else 0,
        )

    def traffic(self, sizes: StepSizes) -> Traffic:
        """Per micro-batch a reduce-scatter of gradients, and all-gathers of weights in forward and backward; the backward
        gathers only what was dropped after the forward."""
        keeps = sizes.trained if self.strategy is ShardingStrategy.SHARD_GRAD_OP else sizes.outside
        sent = sizes.micro_batches * ring_elements(sizes.trained, sizes.ranks)
        gathers = 2 - keeps / sizes.trained
        return Traffic(int(self.communication_dtype.itemsize * sent), int(gathers * sizes.width * sent))


class FsdpEngine(Engine):
    sees_gradients = False  # its graphs know FSDP's flat tensors, on one rank too

    def __init__(self, module: nn.Module, options: EngineOptions, settings: dict[str, Any]):
        super().__init__(module, options)
        device = self.world.device
        set_accelerator(device)
        blocks: list[nn.Module] = getattr(module, "checkpoint_blocks", list)()
        self._booster, wrapped = boost(module, blocks, device, **settings)
        if options.dtype == "bf16":  # as FSDP does it to the trained ones
            for _, tensor in self._buffers_and_frozen():
                tensor.data = tensor.data.to(torch.bfloat16) if tensor.is_floating_point() else tensor.data
        self._set_optimizer(options.make_optimizer(list(self.trainable.values())))
        self.model = PrecisionWrapper(wrapped, options.dtype, device, cast_inputs=True)
        self._flat = FlatParameters(wrapped)
        # FSDP cuts a unit as one tensor, so a rank's range of a parameter is not the even one of a checkpoint
        own = self._flat.ranges()
        by_rank = collectives.gather_objects({name: own[id(each)] for name, each in self.trainable.items()})
        self._ranges = {name: [ranges[name] for ranges in by_rank] for name in self.trainable}
        self._even_ranges = even_ranges({name: shape.numel() for name, shape in self.shapes.items()})
        self._offloads = settings["cpu_offload"] is not None
        self._earlier: dict[str, Tensor] = {}  # gradients of earlier micro-batches

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        yield  # every backward exchanges; the shards of the gradients are added up in float32
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

    def _squared_grad_norm(self) -> Tensor:
        parameters = list(self.trainable.values())
        for parameter, used in zip(parameters, self._flat.used_anywhere(parameters), strict=True):
            # untouched on every rank: no gradient, so that the optimizer leaves it alone as it does on one rank;
            # held by other ranks only: it must count steps all the same
            if not used:
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return collectives.sum_over_ranks(squared_norm(self._gradients()))

    def discard_gradients(self) -> None:
        super().discard_gradients()
        self._earlier.clear()
        self._flat.clear_used()

    def to_even_shards(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return redistribute(shards, self._ranges, self._even_ranges)

    def from_even_shards(self, shards: Mapping[str, Tensor], even: Mapping[str, Tensor]) -> None:
        own = redistribute({name: even[name] for name in shards}, self._even_ranges, self._ranges)
        super().from_even_shards(shards, own)

    def _master(self, name: str) -> Tensor:
        return self.trainable[name]

    def _local_shard(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.detach().view(-1)

    def _sync_from_masters(self) -> None:
        self._flat.drop_gathered()
