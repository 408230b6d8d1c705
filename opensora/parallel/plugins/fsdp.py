"""fsdp: torch's fully_shard (FSDP2). Parameters, gradients and optimizer state are cut over the ranks, row by row."""

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.engine import (
    Engine,
    EngineOptions,
    Precision,
    PrecisionWrapper,
    broadcast_and_move,
    squared_norm,
)
from opensora.parallel.plugins.base import Plugin
from opensora.parallel.reshard import chunk_ranges, redistribute
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
        self.reshard_after_forward = reshard_after_forward
        self.communication_dtype = DTYPES[communication_dtype]
        self.cpu_offload = cpu_offload

    def check(self, world: World) -> None:
        """ConfigError for cpu_offload on the CPU: torch would pin the memory for a device."""
        if self.cpu_offload and world.device.type == "cpu":
            raise ConfigError(
                "plugin_config.cpu_offload: True on the CPU; allowed: False there, everything is in host memory already; "
                "remove the key"
            )

    def apply(self, model: nn.Module, options: EngineOptions) -> "FsdpEngine":
        self.check(options.world)
        broadcast_and_move(model, options.world.device)
        settings = {
            "mesh": init_device_mesh(options.world.device.type, (options.world.size,)),
            "offload_policy": CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy(),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=DTYPES[options.dtype],
                reduce_dtype=self.communication_dtype,
                cast_forward_inputs=False,  # PrecisionWrapper does, and knows what must stay float32
            ),
            # frozen parameters stay whole: they have no gradient, and are small in every model that trains here
            "ignored_params": {each for each in model.parameters() if not each.requires_grad},
        }
        return FsdpEngine(model, options, self.reshard_after_forward, settings)

    def memory(self, sizes: StepSizes) -> StepMemory:
        share = sizes.share
        waiting = int(4 * share) if sizes.micro_batches > 1 and not self.cpu_offload else 0
        # the unit being computed, the next one being gathered, and all parameters outside of the units
        gathered = sizes.width * (sizes.outside + 2 * sizes.blocks if self.reshard_after_forward else sizes.trained)

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
        keeps = sizes.outside if self.reshard_after_forward else sizes.trained
        sent = sizes.micro_batches * ring_elements(sizes.trained, sizes.ranks)
        gathers = 2 - keeps / sizes.trained
        return Traffic(int(self.communication_dtype.itemsize * sent), int(gathers * sizes.width * sent))


class FsdpEngine(Engine):
    sees_gradients = False  # its graphs know gathered parameters, on one rank too

    def __init__(
        self, module: nn.Module, options: EngineOptions, reshard_after_forward: bool, settings: Mapping[str, Any]
    ):
        super().__init__(module, options)
        if options.dtype == "bf16":  # as FSDP does it to the trained ones
            for _, tensor in self._buffers_and_frozen():
                tensor.data = tensor.data.to(torch.bfloat16) if tensor.is_floating_point() else tensor.data
        # a model may return a view of its last activation; nothing in training writes into it
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        blocks: list[nn.Module] = getattr(module, "checkpoint_blocks", list)()
        for block in blocks:
            fully_shard(block, reshard_after_forward=reshard_after_forward, **settings)
        # what is outside of the blocks stays gathered from the forward to the end of the backward
        fully_shard(module, **settings).set_reduce_scatter_unused_params(True)
        self._units = [each for each in module.modules() if isinstance(each, FSDPModule)]
        self.trainable = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self._set_optimizer(options.make_optimizer(list(self.trainable.values())))
        self.model = PrecisionWrapper(module, options.dtype, self.world.device, bf16_weights=True)
        # a rank holds some rows of a parameter, a checkpoint some elements
        self._ranges = {name: chunk_ranges(shape[0], shape[1:].numel()) for name, shape in self.shapes.items()}
        self._even_ranges = {name: chunk_ranges(shape.numel()) for name, shape in self.shapes.items()}
        self._used: set[str] = set()  # parameters that this rank's samples used in this step
        self._watched: set[str] = set()
        for unit in self._units:
            unit.register_forward_pre_hook(self._watch_use)

    def _watch_use(self, unit: nn.Module, inputs: Any) -> None:
        """Note the use of gathered parameters: FSDP gives a parameter that no sample used a gradient of zeros."""
        if len(self._watched) == len(self.trainable):
            return
        for name, parameter in self.module.named_parameters():
            if name in self.trainable and name not in self._watched and not isinstance(parameter, DTensor):
                self._watched.add(name)
                parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._used.add(name))

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()  # every backward exchanges; the shards of the gradients are added up in float32

    def _gradients(self) -> list[Tensor]:
        local = [each.grad.to_local() for each in self.trainable.values() if isinstance(each.grad, DTensor)]
        return [each for each in local if each.numel()]

    def _squared_grad_norm(self) -> Tensor:
        used = collectives.sum_over_ranks(torch.tensor([int(name in self._used) for name in self.trainable]))
        for parameter, count in zip(self.trainable.values(), used, strict=True):
            if not count:  # no gradient, so that the optimizer leaves it alone as it does on one rank
                parameter.grad = None
        return collectives.sum_over_ranks(squared_norm(self._gradients()))

    def discard_gradients(self) -> None:
        super().discard_gradients()
        self._used.clear()

    def to_even_shards(self, shards: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return redistribute(shards, self._ranges, self._even_ranges)

    def from_even_shards(self, shards: Mapping[str, Tensor], even: Mapping[str, Tensor]) -> None:
        own = redistribute({name: even[name] for name in shards}, self._even_ranges, self._ranges)
        super().from_even_shards(shards, own)

    def _master(self, name: str) -> Tensor:
        return self.trainable[name]

    def _local_shard(self, name: str, tensor: Tensor) -> Tensor:
        assert isinstance(tensor, DTensor)
        return tensor.to_local().detach().view(-1)

    def _sync_from_masters(self) -> None:
        for unit in self._units:
            unit.reshard()  # a forward without a backward leaves gathered weights behind; they are out of date
