"""Memory of one rank at each point of an optimizer step, for each plugin.

The formulas follow the code of opensora/parallel/plugins, parallel/reducer.py and parallel/colossal/zero_adapter.py with
colossalai's low-level ZeRO underneath. tests/distributed/test_plan_memory.py compares them with measurements.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from opensora.planning.meta_profile import StepProfile
from opensora.types import DTYPES

WIDTHS = {"bf16": 2, "fp32": 4}  # bytes of an element
M = 2**20


@dataclass(frozen=True)
class ModelSizes:
    """Elements of the trained module."""

    trained: int
    fixed: int = 0  # parameters and buffers that are not trained
    largest: int = 0  # of one trained parameter
    blocks: int = 0  # of the largest checkpoint block
    outside: int = 0  # of all parameters outside of the checkpoint blocks
    tensor_sharded: int = 0  # of all that tensor parallelism divides, in the whole model


@dataclass(frozen=True)
class ParallelLayout:
    """The division of a step between ranks."""

    plugin: str
    world: int
    micro_batches: int  # of one rank and step
    dtype: str = "bf16"
    sp_size: int = 1
    sp_mode: str = "dsp"
    grad_checkpoint: bool = False
    cpu_offload: bool = False
    communication_dtype: str = "fp32"
    bucket_elements: int = 12 * M
    overlap: bool = True  # gradients are sent while the backward runs
    keep_gathered: bool = False  # fsdp: weights stay gathered between forward and backward
    tp_size: int = 1  # hybrid: ranks that share the heads and hidden units of a block
    gloo: bool = False  # the CPU's collectives, which copy what they gather or scatter once more

    @property
    def family(self) -> str:
        """The plugin without the suffix of those that share tokens."""
        return self.plugin.removesuffix("-seq")

    @property
    def data_size(self) -> int:
        return self.world // (self.sp_size * self.tp_size)

    @property
    def width(self) -> int:
        """Bytes of a weight that the model runs with."""
        return 4 if self.replicated else WIDTHS[self.dtype]

    @property
    def weight_dtype(self) -> torch.dtype:
        """Of the weights that the model runs with; autocast may narrow them further."""
        return torch.float32 if self.replicated else DTYPES[self.dtype]

    @property
    def replicated(self) -> bool:
        """True where ranks hold whole float32 weights and their optimizer state (under hybrid: of their shard)."""
        return self.family in ("ddp", "hybrid")


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def model_sizes(model: Any) -> ModelSizes:
    """The sizes of a module with `checkpoint_blocks`."""
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    blocks = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in model.checkpoint_blocks()]
    return ModelSizes(
        trained=sum(trained),
        fixed=parameter_count(model) - sum(trained) + sum(buffer.numel() for buffer in model.buffers()),
        largest=max(trained),
        blocks=max(blocks, default=0),
        outside=sum(trained) - sum(blocks),
    )


def state_bytes(layout: ParallelLayout, sizes: ModelSizes, ema: bool) -> dict[str, int]:
    """Bytes that stay on the device from step to step."""
    local, share = local_elements(layout, sizes), sizes.trained / layout.world
    fixed = layout.width * sizes.fixed
    if layout.replicated:  # the float32 weights are their own masters
        state = {"weights": 4 * local + fixed, "optimizer moments": 8 * local}
    elif layout.family == "fsdp":
        state = {"weights": 4 * share + fixed, "optimizer moments": 8 * share}
    else:
        state = {
            "weights": layout.width * local + fixed,
            "fp32 master weights": 4 * share,
            "optimizer moments": 8 * share,
        }
    state["averaged weights (EMA)"] = 4 * share if ema else 0
    if layout.cpu_offload:
        on_host = ("weights",) if layout.family == "fsdp" else ("fp32 master weights",)
        for name in (*on_host, "optimizer moments", "averaged weights (EMA)"):
            state.pop(name, None)
    return {name: int(value) for name, value in state.items()}


def local_elements(layout: ParallelLayout, sizes: ModelSizes) -> float:
    """Trained elements in the model of one rank."""
    return sizes.trained - sizes.tensor_sharded * (1 - 1 / layout.tp_size)


def host_bytes(layout: ParallelLayout, sizes: ModelSizes, ema: bool) -> int:
    """Host bytes of one rank under cpu_offload: masters, moments, EMA, and gradients for the update."""
    return int((20 if ema else 16) * sizes.trained / layout.world) if layout.cpu_offload else 0


def memory_points(layout: ParallelLayout, sizes: ModelSizes, profile: StepProfile) -> Iterator[dict[str, int]]:
    """Yield the bytes on top of the state at each point of the last micro-batch and of the update after it."""
    for point in profile.points:
        gradients, buffers = _in_backward(layout, sizes, point.gradients)
        yield _rows(point.live, gradients, buffers)
    for gradients, buffers in _after_backward(layout, sizes):
        yield _rows(0, gradients, buffers)


def waiting_gradients(layout: ParallelLayout, sizes: ModelSizes) -> int:
    """Bytes of the gradients of earlier micro-batches when the last one begins."""
    if layout.micro_batches == 1:
        return 0
    if layout.replicated or layout.family == "zero1":
        return int(4 * local_elements(layout, sizes))  # accumulated in float32
    if layout.family == "fsdp" and layout.cpu_offload:
        return 0
    return int(4 * sizes.trained / layout.world)


def _rows(live: float, gradients: float, buffers: float) -> dict[str, int]:
    return {"activations": int(live), "gradients": int(gradients), "communication buffers": int(buffers)}


def _in_backward(layout: ParallelLayout, sizes: ModelSizes, delivered: int) -> tuple[float, float]:
    """(gradients, buffers) in bytes when the backward has made `delivered` elements of the gradient."""
    waiting = waiting_gradients(layout, sizes)
    bucket = min(layout.bucket_elements, delivered)
    if layout.replicated:
        # the reducer's flat copies stay until all are received
        new = 4 * delivered
        return max(waiting, new), new * _exchanged(layout, sizes) / local_elements(layout, sizes)
    if layout.family == "fsdp":
        # the unit being computed, the next one being gathered, and all parameters outside of the units
        units = layout.width * (sizes.trained if layout.keep_gathered else sizes.outside + 2 * sizes.blocks)
        shards = 0 if layout.cpu_offload else max(waiting, 4 * delivered / layout.world)
        return shards, units + _wire(layout) * (sizes.blocks if delivered else 0)
    if layout.family == "zero1" and not layout.overlap:
        working = waiting if layout.dtype == "fp32" and waiting else layout.width * delivered
        return working + (waiting if layout.dtype != "fp32" else 0), 0
    exchanged = (delivered - bucket) / (1 if layout.family == "zero1" else layout.world)
    return max(waiting, 4 * exchanged), _reduction(layout, bucket)


def _after_backward(layout: ParallelLayout, sizes: ModelSizes) -> Iterator[tuple[float, float]]:
    """Yield (gradients, buffers) in bytes while the rest is exchanged, and while the weights are updated."""
    whole = sizes.trained
    if layout.replicated:
        yield 4 * local_elements(layout, sizes), 4 * _exchanged(layout, sizes)
        return
    if layout.family == "fsdp":
        yield 0 if layout.cpu_offload else 4 * whole / layout.world, 0
        return
    if layout.family == "zero1" and not layout.overlap:
        pending = (4 if layout.dtype == "bf16" and layout.micro_batches > 1 else 0) + layout.width
        bucket = min(layout.bucket_elements, whole)
        yield max(4, pending) * (whole - bucket), _reduction(layout, bucket)
    kept = 4 * whole if layout.family == "zero1" else 4 * whole / layout.world
    yield kept, _gathering(layout, sizes)


def _exchanged(layout: ParallelLayout, sizes: ModelSizes) -> float:
    """Elements of a rank's gradients that are averaged with other ranks, for plugins that hold whole weights."""
    if layout.world == layout.tp_size:
        return sizes.trained - sizes.tensor_sharded if layout.world > 1 else 0
    return local_elements(layout, sizes)


def _wire(layout: ParallelLayout) -> int:
    return WIDTHS[layout.communication_dtype]


def _reduction(layout: ParallelLayout, elements: float) -> float:
    """Bytes of a bucket of gradients during its exchange: padded float32 copies and the joined ones, then the narrowed copy
    for the wire or the received part, whichever is larger."""
    wire = _wire(layout) if layout.communication_dtype != "fp32" else 0
    received = 0.0
    if layout.family == "zero2":
        received = _wire(layout) * (1 / layout.world + (1 if layout.gloo else 0))
    return elements * (8 + max(wire, received))


def _gathering(layout: ParallelLayout, sizes: ModelSizes) -> float:
    """Bytes of a bucket of updated shards during the all-gather: narrowed, joined, from all ranks, and one whole parameter."""
    shards = min(layout.bucket_elements, sizes.trained / layout.world)
    narrowed = 0 if layout.dtype == "fp32" and not layout.cpu_offload else 1
    gathered = layout.world * (2 if layout.gloo else 1)
    return layout.width * (shards * (narrowed + 1 + gathered) + sizes.largest)
