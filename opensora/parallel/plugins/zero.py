"""zero1 and zero2: ColossalAI's low-level ZeRO. Masters and moments (zero2: gradients too) are cut over the ranks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.colossal.accelerator import import_colossalai, set_accelerator
from opensora.parallel.colossal.zero_adapter import ZeroShards, boost
from opensora.parallel.engine import (
    Engine,
    EngineOptions,
    Precision,
    PrecisionWrapper,
    broadcast_and_move,
    clip_factor,
)
from opensora.parallel.plugins.base import Plugin
from opensora.parallel.step_costs import StepMemory, StepSizes, Traffic, ring_elements
from opensora.parallel.world import World
from opensora.registry import PLUGINS
from opensora.types import DTYPES


class Zero(Plugin):
    """bf16 means bfloat16 working weights next to float32 masters.

    reduce_bucket_size_in_m: gradients are sent in buckets of this many times 2**20 elements.
    communication_dtype: precision of gradients on the wire; bf16 halves the traffic and rounds them once more.
    cpu_offload: keep masters and moments in host memory; the update runs there too.
    overlap_communication: send gradients on a second stream during the backward; None: wherever there are streams.
    """

    stage: int

    def __init__(
        self,
        reduce_bucket_size_in_m: int = 12,
        communication_dtype: Precision = "fp32",
        cpu_offload: bool = False,
        overlap_communication: bool | None = None,
    ):
        if reduce_bucket_size_in_m < 1:
            raise ConfigError(
                f"plugin_config.reduce_bucket_size_in_m: {reduce_bucket_size_in_m} found; allowed: 1 and more; "
                "remove the key for 12"
            )
        self.overlap_communication = overlap_communication
        self.options: dict[str, Any] = {
            "reduce_bucket_size_in_m": reduce_bucket_size_in_m,
            "communication_dtype": DTYPES[communication_dtype],
            "cpu_offload": cpu_offload,
        }

    def check(self, world: World) -> None:
        """ConfigError for overlap_communication on the CPU, and without colossalai."""
        import_colossalai()
        if world.device.type == "cpu" and self.overlap_communication:
            raise ConfigError(
                "plugin_config.overlap_communication: True on the CPU; allowed: False or None there, "
                "it has no streams; remove the key"
            )

    def apply(self, model: nn.Module, options: EngineOptions) -> "ZeroEngine":
        world = options.world
        self.check(world)
        overlap = world.device.type != "cpu" if self.overlap_communication is None else self.overlap_communication
        broadcast_and_move(model, world.device)
        settings = {"stage": self.stage, "overlap_communication": overlap, **self.options}
        return ZeroEngine(model, options, settings)

    def memory(self, sizes: StepSizes) -> StepMemory:
        """By the code of colossalai's low-level ZeRO under colossal/zero_adapter.py."""
        trained, share, offload = sizes.trained, sizes.share, self.options["cpu_offload"]
        bucket_elements = 2**20 * self.options["reduce_bucket_size_in_m"]
        overlap = not sizes.gloo if self.overlap_communication is None else self.overlap_communication
        accumulated = trained if self.stage == 1 else share  # elements of the gradients of a step that a rank keeps
        waiting = int(4 * accumulated) if sizes.micro_batches > 1 else 0
        exchanged_at_the_end = self.stage == 1 and not overlap

        def backward(elements: int) -> tuple[float, float]:
            if exchanged_at_the_end:
                in_place = sizes.dtype == "fp32" and waiting  # new gradients are added to the waiting ones
                return (waiting if in_place else sizes.width * elements + waiting), 0
            bucket = min(bucket_elements, elements)
            exchanged = (elements - bucket) / (1 if self.stage == 1 else sizes.ranks)
            return max(waiting, 4 * exchanged), self._reduction_bytes(sizes, bucket)

        update = [(4 * accumulated, self._gathering_bytes(sizes, min(bucket_elements, share)))]
        if exchanged_at_the_end:
            width = sizes.width + (4 if sizes.dtype == "bf16" and sizes.micro_batches > 1 else 0)
            bucket = min(bucket_elements, trained)
            update.insert(0, (max(4, width) * (trained - bucket), self._reduction_bytes(sizes, bucket)))
        masters = {} if offload else {"fp32 master weights": 4 * share, "optimizer moments": 8 * share}
        return StepMemory(
            state={"weights": sizes.width * (trained + sizes.fixed), **masters},
            waiting=waiting,
            backward=backward,
            update=update,
            update_bytes=(28 + sizes.width) * share,  # the working weights are written too
            host=16 * share if offload else 0,
        )

    def traffic(self, sizes: StepSizes) -> Traffic:
        """zero1: one all-reduce of gradients; zero2: a reduce-scatter per micro-batch. Both gather the updated weights."""
        once = ring_elements(sizes.trained, sizes.ranks)
        exchanges = 2 if self.stage == 1 else sizes.micro_batches
        return Traffic(int(exchanges * self.options["communication_dtype"].itemsize * once), int(sizes.width * once))

    def _reduction_bytes(self, sizes: StepSizes, elements: float) -> float:
        """Of a bucket of gradients during its exchange: padded float32 copies and the joined ones, then the narrowed copy
        for the wire or the received part, whichever is larger."""
        dtype = self.options["communication_dtype"]
        narrowed = 0 if dtype is torch.float32 else dtype.itemsize
        received = dtype.itemsize * (1 / sizes.ranks + sizes.gloo) if self.stage == 2 else 0
        return elements * (8 + max(narrowed, received))

    def _gathering_bytes(self, sizes: StepSizes, shards: float) -> float:
        """Of a bucket of updated shards during the all-gather: narrowed, joined, from all ranks, and one whole parameter."""
        narrowed = 0 if sizes.dtype == "fp32" and not self.options["cpu_offload"] else 1
        gathered = sizes.ranks * (2 if sizes.gloo else 1)
        return sizes.width * (shards * (narrowed + 1 + gathered) + sizes.largest)


@PLUGINS.register_module(name="zero1")
class Zero1(Zero):
    """Optimizer state is cut over the ranks; gradients are added up locally and exchanged once per step."""

    stage = 1


@PLUGINS.register_module(name="zero2")
class Zero2(Zero):
    """Gradients are cut as well: exchanged after every micro-batch, added up in float32, each rank keeping its part."""

    stage = 2


class ZeroEngine(Engine):
    def __init__(self, module: nn.Module, options: EngineOptions, settings: dict[str, Any]):
        super().__init__(module, options)
        exact = {
            name: collectives.shard(parameter.detach().reshape(-1)).clone()
            for name, parameter in self.trainable.items()
        }
        set_accelerator(self.world.device)
        self._accumulates_locally = settings["stage"] == 1  # stage 2 must exchange at every backward
        optimizer = options.make_optimizer(list(self.trainable.values()))
        self._booster, wrapped, self._zero = boost(module, optimizer, precision=options.dtype, **settings)
        self._set_optimizer(self._zero.optim)
        self._shards = ZeroShards(self._zero)
        self.model = PrecisionWrapper(wrapped, options.dtype, self.world.device, bf16_weights=True)
        for name, shard in exact.items():  # colossalai makes masters of weights already rounded to bfloat16
            self._local_shard(name, self._master(name)).copy_(shard)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        if last or not self._accumulates_locally:
            yield
            return
        with self._booster.no_sync(optimizer=self._zero):
            yield
        self._zero.keep_local()

    def backward(self, loss: Tensor) -> None:
        self._booster.backward(loss, self._zero)

    def _squared_grad_norm(self) -> Tensor:
        return self._zero.squared_grad_norm()

    def update(self, lr_factor: float = 1.0) -> None:
        self._set_lr(lr_factor)
        self._zero.clip_factor = clip_factor(self._norm, self.grad_clip)
        self._zero.step()  # clips, updates the masters, gathers them into the working weights
        self.discard_gradients()

    def discard_gradients(self) -> None:
        self._zero.zero_grad()
        self._norm = math.nan

    def _master(self, name: str) -> Tensor:
        return self._shards.master(self.trainable[name])

    def _local_shard(self, name: str, tensor: Tensor) -> Tensor:
        return self._shards.own(self.trainable[name], tensor)

    def _sync_from_masters(self) -> None:
        self._shards.sync_from_masters(list(self.trainable.values()))
