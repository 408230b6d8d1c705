"""zero1 and zero2: ColossalAI's low-level ZeRO. Masters and moments (zero2: gradients too) are cut over the ranks."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.colossal.accelerator import import_colossalai, set_accelerator
from opensora.parallel.colossal.zero_adapter import ZeroShards, boost
from opensora.parallel.engine import Engine, Forward, OptimizerFactory, is_finite, place
from opensora.parallel.world import World
from opensora.registry import PLUGINS

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Zero:
    """bf16 means bfloat16 working weights beside float32 masters.

    reduce_bucket_size_in_m: gradients are sent in buckets of this many times 2**20 elements.
    communication_dtype: precision of gradients on the wire; bf16 halves the traffic and rounds them once more.
    cpu_offload: keep masters and moments in host memory; the update runs there too.
    overlap_communication: send gradients on a second stream during the backward; None: wherever there are streams.
    """

    stage: int

    def __init__(
        self,
        reduce_bucket_size_in_m: int = 12,
        communication_dtype: Literal["bf16", "fp32"] = "fp32",
        cpu_offload: bool = False,
        overlap_communication: bool | None = None,
    ):
        if reduce_bucket_size_in_m < 1:
            raise ConfigError(
                f"plugin_config.reduce_bucket_size_in_m: {reduce_bucket_size_in_m} found; allowed: 1 and more; "
                "remove the key for 12"
            )
        self.overlap_communication = overlap_communication
        self.options = {
            "reduce_bucket_size_in_m": reduce_bucket_size_in_m,
            "communication_dtype": _DTYPES[communication_dtype],
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

    def apply(
        self,
        model: nn.Module,
        optimizer_factory: OptimizerFactory,
        dtype: Literal["bf16", "fp32"],
        grad_clip: float,
        world: World,
    ) -> "ZeroEngine":
        self.check(world)
        overlap = world.device.type != "cpu" if self.overlap_communication is None else self.overlap_communication
        place(model, world.device)
        return ZeroEngine(
            model,
            optimizer_factory,
            dtype,
            grad_clip,
            world,
            {"stage": self.stage, "overlap_communication": overlap, **self.options},
        )


@PLUGINS.register_module(name="zero1")
class Zero1(Zero):
    """Optimizer state is cut over the ranks; gradients are added up locally and exchanged once per step."""

    stage = 1


@PLUGINS.register_module(name="zero2")
class Zero2(Zero):
    """Gradients are cut as well: exchanged after every micro-batch, added up in float32, each rank keeping its part."""

    stage = 2


class ZeroEngine(Engine):
    def __init__(
        self,
        module: nn.Module,
        optimizer_factory: OptimizerFactory,
        dtype: Literal["bf16", "fp32"],
        grad_clip: float,
        world: World,
        options: dict,
    ):
        super().__init__(module, world, grad_clip)
        exact = {
            name: collectives.shard(parameter.detach().reshape(-1)).clone()
            for name, parameter in self.trainable.items()
        }
        set_accelerator(world.device)
        self._accumulates_locally = options["stage"] == 1  # stage 2 must exchange at every backward
        self._booster, wrapped, self._zero = boost(
            module,
            optimizer_factory(list(self.trainable.values())),
            precision=dtype,
            **options,
        )
        self.optimizer = self._zero.optim
        self._shards = ZeroShards(self._zero)
        self.model = Forward(wrapped, dtype, world.device, cast_inputs=True)
        for name, piece in exact.items():  # colossalai makes masters of weights already rounded to bfloat16
            self._own(name, self._master(name)).copy_(piece)

    def backward(self, loss: Tensor, last: bool) -> None:
        local_only = self._accumulates_locally and not last
        with self._booster.no_sync(optimizer=self._zero) if local_only else nullcontext():
            self._booster.backward(loss, self._zero)
        if local_only:
            self._zero.keep_local()

    def step(self, accept: Callable[[float], bool] = is_finite) -> float:
        return self._zero.clipped_step(self.grad_clip, accept)

    def _master(self, name: str) -> Tensor:
        return self._shards.master(self.trainable[name])

    def _own(self, name: str, tensor: Tensor) -> Tensor:
        return self._shards.own(self.trainable[name], tensor)

    def _refresh(self) -> None:
        self._shards.refresh(list(self.trainable.values()))
