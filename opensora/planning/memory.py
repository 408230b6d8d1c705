"""Memory of one rank over an optimizer step, moment by moment, for each way of sharing it between ranks.

What a plugin holds follows from what its code does: opensora/parallel/plugins, parallel/reducer.py and
parallel/colossal/zero_adapter.py with colossalai's low-level ZeRO underneath. tests/distributed/test_plan_memory.py measures it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from opensora.planning.meta_profile import StepProfile

WIDTHS = {"bf16": 2, "fp32": 4}  # bytes of an element
M = 2**20


@dataclass(frozen=True)
class Sizes:
    """Elements of the trained module."""

    trained: int
    fixed: int = 0  # parameters and buffers that are not trained
    largest: int = 0  # of one trained parameter
    blocks: int = 0  # of the largest checkpoint block
    outside: int = 0  # of what is in no checkpoint block
    cut: int = 0  # of what tensor parallelism cuts


@dataclass(frozen=True)
class Layout:
    """How a step is shared between ranks."""

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
    gloo: bool = False  # the CPU's exchange, which copies what it gathers or scatters once more

    @property
    def family(self) -> str:
        """The plugin, whatever its ranks do with the tokens."""
        return self.plugin.removesuffix("-seq")

    @property
    def data_size(self) -> int:
        return self.world // (self.sp_size * self.tp_size)

    @property
    def width(self) -> int:
        """Bytes of a weight that the model runs with."""
        return 4 if self.replicated else WIDTHS[self.dtype]

    @property
    def replicated(self) -> bool:
        """Whether ranks hold whole float32 weights with all their optimizer state (of their part, under hybrid)."""
        return self.family in ("ddp", "hybrid")


def state_bytes(layout: Layout, sizes: Sizes, ema: bool) -> dict[str, int]:
    """What stays from step to step on the device, bytes."""
    whole, share = own_elements(layout, sizes), sizes.trained / layout.world
    average = 4 * share if ema else 0
    fixed = layout.width * sizes.fixed
    if layout.replicated:  # the float32 weights are their own masters
        found = {"weights": 4 * whole + fixed, "optimizer moments": 8 * whole}
    elif layout.family == "fsdp":
        found = {"weights": 4 * share + fixed, "optimizer moments": 8 * share}
    else:
        found = {
            "weights": layout.width * whole + fixed,
            "fp32 master weights": 4 * share,
            "optimizer moments": 8 * share,
        }
    found["averaged weights (EMA)"] = average
    if layout.cpu_offload:
        on_host = ("weights",) if layout.family == "fsdp" else ("fp32 master weights",)
        for name in (*on_host, "optimizer moments", "averaged weights (EMA)"):
            found.pop(name, None)
    return {name: int(value) for name, value in found.items()}


def own_elements(layout: Layout, sizes: Sizes) -> float:
    """Trained elements that a rank's model has."""
    return sizes.trained - sizes.cut * (1 - 1 / layout.tp_size)


def host_bytes(layout: Layout, sizes: Sizes, ema: bool) -> int:
    """What cpu_offload puts into host memory for one rank: masters, moments, the average, and gradients for the update."""
    return int((20 if ema else 16) * sizes.trained / layout.world) if layout.cpu_offload else 0


def moments(layout: Layout, sizes: Sizes, rehearsal: StepProfile) -> Iterator[dict[str, int]]:
    """What comes on top of the state at each moment of the last micro-batch and of the update that follows it."""
    for moment in rehearsal.moments:
        gradients, buffers = _in_backward(layout, sizes, moment.delivered)
        yield _rows(moment.live, gradients, buffers)
    for gradients, buffers in _after_backward(layout, sizes):
        yield _rows(0, gradients, buffers)


def held_gradients(layout: Layout, sizes: Sizes) -> int:
    """Gradients of earlier micro-batches that wait while the last one begins, bytes."""
    if layout.micro_batches == 1:
        return 0
    if layout.replicated or layout.family == "zero1":
        return int(4 * own_elements(layout, sizes))  # added up in float32
    if layout.family == "fsdp" and layout.cpu_offload:
        return 0
    return int(4 * sizes.trained / layout.world)


def _rows(live: float, gradients: float, buffers: float) -> dict[str, int]:
    return {"activations": int(live), "gradients": int(gradients), "communication buffers": int(buffers)}


def _in_backward(layout: Layout, sizes: Sizes, delivered: int) -> tuple[float, float]:
    """(gradients, buffers) when so many elements of the gradient are made."""
    held = held_gradients(layout, sizes)
    bucket = min(layout.bucket_elements, delivered)
    if layout.replicated:
        # the reducer's flat copies stay until all are received
        made = 4 * delivered
        return max(held, made), made * _exchanged(layout, sizes) / own_elements(layout, sizes)
    if layout.family == "fsdp":
        # the unit that is computed, the next one on its way, and what lies outside of all units
        units = layout.width * (sizes.trained if layout.keep_gathered else sizes.outside + 2 * sizes.blocks)
        pieces = 0 if layout.cpu_offload else max(held, 4 * delivered / layout.world)
        return pieces, units + _wire(layout) * (sizes.blocks if delivered else 0)
    if layout.family == "zero1" and not layout.overlap:
        working = held if layout.dtype == "fp32" and held else layout.width * delivered
        return working + (held if layout.dtype != "fp32" else 0), 0
    exchanged = (delivered - bucket) / (1 if layout.family == "zero1" else layout.world)
    return max(held, 4 * exchanged), _reduction(layout, bucket)


def _after_backward(layout: Layout, sizes: Sizes) -> Iterator[tuple[float, float]]:
    """(gradients, buffers) while the rest is exchanged, and while the weights are updated."""
    whole = sizes.trained
    if layout.replicated:
        yield 4 * own_elements(layout, sizes), 4 * _exchanged(layout, sizes)
        return
    if layout.family == "fsdp":
        yield 0 if layout.cpu_offload else 4 * whole / layout.world, 0
        return
    if layout.family == "zero1" and not layout.overlap:
        waiting = (4 if layout.dtype == "bf16" and layout.micro_batches > 1 else 0) + layout.width
        bucket = min(layout.bucket_elements, whole)
        yield max(4, waiting) * (whole - bucket), _reduction(layout, bucket)
    kept = 4 * whole if layout.family == "zero1" else 4 * whole / layout.world
    yield kept, _gathering(layout, sizes)


def _exchanged(layout: Layout, sizes: Sizes) -> float:
    """Elements of a rank's gradients that other ranks have as well, where ranks hold whole weights: all are averaged."""
    if layout.world == layout.tp_size:
        return sizes.trained - sizes.cut if layout.world > 1 else 0
    return own_elements(layout, sizes)


def _wire(layout: Layout) -> int:
    return WIDTHS[layout.communication_dtype]


def _reduction(layout: Layout, elements: float) -> float:
    """A bucket of gradients being exchanged: in float32 as padded copies, and joined; then narrowed for the wire, or what
    is received of it."""
    wire = _wire(layout) if layout.communication_dtype != "fp32" else 0
    received = 0.0
    if layout.family == "zero2":
        received = _wire(layout) * (1 / layout.world + (1 if layout.gloo else 0))
    return elements * (8 + max(wire, received))


def _gathering(layout: Layout, sizes: Sizes) -> float:
    """A bucket of updated pieces on its way to all ranks: narrowed, joined, everybody's, and one parameter put together."""
    pieces = min(layout.bucket_elements, sizes.trained / layout.world)
    narrowed = 0 if layout.dtype == "fp32" and not layout.cpu_offload else 1
    everybodys = layout.world * (2 if layout.gloo else 1)
    return layout.width * (pieces * (narrowed + 1 + everybodys) + sizes.largest)
