"""Each key of plugin_config has its effect: on the tensors of collectives, or on the engine that receives it."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy

from opensora.errors import ConfigError
from opensora.parallel.colossal.accelerator import set_accelerator
from opensora.parallel.plugins import fsdp, zero
from opensora.registry import PLUGINS, build
from tests.dist import one_rank, run_ranks
from tests.distributed import tiny

# torch 2.14 has new names for some
REDUCE = "all_reduce"
SCATTER = ("reduce_scatter_tensor", "reduce_scatter_single")
GATHER = ("all_gather_into_tensor", "all_gather_single", "all_gather")  # the last one on the CPU


class Wide(nn.Module):
    """Four layers of 2**19 weights, 2 MiB each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(512, 1024, bias=False) for _ in range(4))

    def checkpoint_blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(x) for layer in self.layers]).sum()


Sent = list[tuple[torch.dtype, int]]


def watch(plugin: str, dtype: str, config: dict[str, Any]) -> tuple[Sent, Sent]:
    """(dtype, elements) of the large tensors that this rank sends in a forward and a backward: (gradients, weights)."""
    torch.manual_seed(0)
    engine = build(PLUGINS, {"type": plugin, **config}).apply(Wide(), tiny.options(dtype, 1.0))
    gradients: Sent = []
    weights: Sent = []

    def recording(name: str, sent: Sent, position: int) -> Any:
        real = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = args[position] if len(args) > position else kwargs.get("input", kwargs.get("input_tensor"))
            if tensor.numel() > 2**16:
                sent.append((tensor.dtype, tensor.numel()))
            return real(*args, **kwargs)

        return mock.patch.object(dist, name, call)

    with ExitStack() as stack:
        stack.enter_context(recording(REDUCE, gradients, 0))
        for names, sent in ((SCATTER, gradients), (GATHER, weights)):
            for name in names:
                if hasattr(dist, name):
                    stack.enter_context(recording(name, sent, 1))
        with engine.accumulating(last=True):
            engine.backward(engine.model(torch.ones(1, 512)))
    return gradients, weights


def gradients(plugin: str, dtype: str = "fp32", **config: Any) -> Sent:
    return run_ranks(watch, 2, plugin, dtype, config)[0][0]


FLOAT, BFLOAT = torch.float32, torch.bfloat16


def test_ddp_sends_buckets_of_the_given_size() -> None:
    assert gradients("ddp", bucket_cap_mb=1) == [(FLOAT, 2**19)] * 4
    assert gradients("ddp", bucket_cap_mb=3) == [(FLOAT, 2**20)] * 2
    assert gradients("ddp") == [(FLOAT, 2**21)]


@pytest.mark.parametrize("plugin", ["zero1", "zero2"])
def test_zero_sends_buckets_of_the_given_size(plugin: str) -> None:
    assert gradients(plugin, reduce_bucket_size_in_m=1) == [(FLOAT, 2**20)] * 2
    assert gradients(plugin) == [(FLOAT, 2**21)]


@pytest.mark.parametrize("plugin", ["zero1", "zero2", "fsdp"])
def test_gradients_are_sent_in_communication_dtype(plugin: str) -> None:
    """The dtype of the model does not matter."""
    for dtype in ("fp32", "bf16"):
        for name, expected in (("fp32", FLOAT), ("bf16", BFLOAT)):
            sent = gradients(plugin, dtype, communication_dtype=name)
            assert {each for each, _ in sent} == {expected}
            assert sum(numel for _, numel in sent) == 2**21


def test_fsdp_gathers_again_in_the_backward_if_it_reshards() -> None:
    again = run_ranks(watch, 2, "fsdp", "bf16", {})[0][1]
    once = run_ranks(watch, 2, "fsdp", "bf16", {"reshard_after_forward": False})[0][1]
    assert again == [(BFLOAT, 2**18)] * 8
    assert once == [(BFLOAT, 2**18)] * 4


class ElsewhereAccelerator:
    """An accelerator whose device is not the CPU."""

    def __init__(self, real: Any):
        self.real = real

    def get_current_device(self) -> torch.device:
        return torch.device("meta")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def masters_lie(offload: bool) -> set[str]:
    from colossalai.zero.low_level import low_level_optim

    set_accelerator(torch.device("cpu"))
    elsewhere = ElsewhereAccelerator(low_level_optim.get_accelerator())
    with mock.patch.object(low_level_optim, "get_accelerator", return_value=elsewhere):
        engine = tiny.make_engine("zero2", cpu_offload=offload)
    return {piece.device.type for _, piece in engine.master_shards()}


def test_cpu_offload_keeps_masters_on_the_host() -> None:
    assert run_ranks(masters_lie, 1, True) == [{"cpu"}]
    assert run_ranks(masters_lie, 1, False) == [{"meta"}]


def test_options_arrive_on_a_device_and_are_refused_on_the_cpu() -> None:
    with one_rank() as here:
        device = replace(here, device=torch.device("cuda"))
        options = replace(tiny.options("bf16", 1.0), world=device)
        for option, expected in ((None, True), (True, True), (False, False)):
            with mock.patch.object(zero, "ZeroEngine") as engine, mock.patch.object(zero, "broadcast_and_move"):
                zero.Zero2(overlap_communication=option).apply(nn.Linear(1, 1), options)
            assert engine.call_args.args[-1]["overlap_communication"] is expected
        with mock.patch.object(fsdp, "FsdpEngine") as engine, mock.patch.object(fsdp, "broadcast_and_move"):
            fsdp.FullyShardedDataParallel(cpu_offload=True).apply(nn.Linear(1, 1), options)
        assert isinstance(engine.call_args.args[-1]["offload_policy"], CPUOffloadPolicy)
        for plugin in (zero.Zero2(overlap_communication=True), fsdp.FullyShardedDataParallel(cpu_offload=True)):
            with pytest.raises(ConfigError, match=r"True.*CPU.*allowed: False"):
                plugin.check(here)
            plugin.check(device)
