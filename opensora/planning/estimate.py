"""One layout of one step: memory of a rank, arithmetic, traffic, and the time it takes at stated rates."""

from collections.abc import Callable
from dataclasses import dataclass, field

from opensora.parallel.traffic import Traffic, plugin_traffic
from opensora.planning.device_specs import EFFICIENCY, LINK_EFFICIENCY, Gpu
from opensora.planning.memory import (
    WIDTHS,
    Layout,
    Sizes,
    held_gradients,
    host_bytes,
    moments,
    own_elements,
    state_bytes,
)
from opensora.planning.meta_profile import StepProfile

ENCODING, STEP = "while a clip is encoded", "in forward, backward or update"


@dataclass(frozen=True)
class FrozenNetworks:
    """The networks that only encode: bytes of their weights, and what one micro-batch costs."""

    weights: dict[str, int] = field(default_factory=dict)
    text: int = 0  # bytes of the text encoder's weights
    text_parallel: str | None = None  # the run's text_encoder_parallel
    encoding_bytes: int = 0  # alive at most while clips are encoded
    flops: int = 0

    def held(self, layout: Layout) -> dict[str, int]:
        """Bytes of weights on one rank."""
        shared = {None: 1, "shard": layout.world, "tensor": layout.sp_size * layout.tp_size}[self.text_parallel]
        return {**self.weights, "text encoder": self.text // shared} if self.text else self.weights


@dataclass
class StepModel:
    """A training step, however it is going to be shared: `profile_step(layout)` gives one micro-batch of one rank."""

    sizes: Sizes
    frozen: FrozenNetworks
    profile_step: Callable[[Layout], StepProfile]
    tokens: int  # of one micro-batch
    ema: bool
    max_sequence_ranks: int = 1  # that can share the tokens of a sample, each with some work
    beside: dict[str, int] = field(default_factory=dict)  # what only the loss needs, bytes
    rival: Sizes | None = None  # the discriminator, shared as the model is
    _known: dict[tuple, StepProfile] = field(default_factory=dict)

    def rehearsal(self, layout: Layout) -> StepProfile:
        """As `profile_step`, once for layouts that are alike in it."""
        key = (layout.sp_size, layout.sp_mode, layout.tp_size, layout.grad_checkpoint, layout.width, layout.dtype)
        if key not in self._known:
            self._known[key] = self.profile_step(layout)
        return self._known[key]

    def beside_it(self, layout: Layout) -> dict[str, int]:
        """Bytes on one rank of what only the loss needs."""
        if self.rival is None:
            return self.beside
        gradients = 4 * self.rival.trained // (layout.world if layout.family == "zero2" else 1)
        state = sum(state_bytes(layout, self.rival, ema=False).values())
        return {**self.beside, "discriminator": self.beside.get("discriminator", 0) + state + gradients}


@dataclass(frozen=True)
class Estimate:
    """Of one rank and one optimizer step; bytes and operations."""

    layout: Layout
    memory: dict[str, int]  # at the fullest moment
    when: str  # that moment, in words
    host: int
    kept: int  # activations between forward and backward
    activations: int  # alive at most, with what is recomputed and what lives for a moment
    traffic: Traffic
    sequence_bytes: int  # sent to the other ranks that share the samples: tokens, under hybrid sums over heads too
    model_flops: int
    frozen_flops: int
    update_bytes: float  # read and written by the optimizer
    tokens: int  # of the step, over all ranks

    @property
    def total(self) -> int:
        return sum(self.memory.values())

    @property
    def bytes_sent(self) -> int:
        return self.traffic.total + self.sequence_bytes


def estimate(subject: StepModel, layout: Layout) -> Estimate:
    """Work a layout out; the costly part is done once for layouts with the same activations."""
    rehearsal, sizes = subject.rehearsal(layout), subject.sizes
    state = state_bytes(layout, sizes, subject.ema) | subject.frozen.held(layout) | subject.beside_it(layout)
    encoding = {"activations": subject.frozen.encoding_bytes, "gradients": held_gradients(layout, sizes)}
    stages = [(STEP, each) for each in moments(layout, sizes, rehearsal)] + [(ENCODING, encoding)]
    when, fullest = max(stages, key=lambda stage: sum(stage[1].values()))
    return Estimate(
        layout=layout,
        memory={name: value for name, value in (state | fullest).items() if value},
        when=when,
        host=host_bytes(layout, sizes, subject.ema),
        kept=rehearsal.kept,
        activations=rehearsal.peak,
        traffic=_traffic(layout, sizes),
        sequence_bytes=layout.micro_batches * rehearsal.sent,
        model_flops=layout.micro_batches * (rehearsal.forward_flops + rehearsal.backward_flops),
        frozen_flops=layout.micro_batches * subject.frozen.flops,
        update_bytes=_update_bytes(layout, sizes, subject.ema),
        tokens=subject.tokens * layout.micro_batches * layout.data_size,
    )


def _traffic(layout: Layout, sizes: Sizes) -> Traffic:
    """What the plugin sends; under hybrid what is cut goes to the ranks that hold the same piece, the rest to all."""
    cut = sizes.cut if layout.tp_size > 1 else 0
    parts = [(sizes.trained - cut, layout.world), (cut // layout.tp_size, layout.world // layout.tp_size)]
    sent = [
        plugin_traffic(
            layout.plugin,
            parameters=elements,
            ranks=ranks,
            micro_batches=layout.micro_batches,
            weight_bytes=layout.width,
            wire_bytes=WIDTHS[layout.communication_dtype],
            stays_gathered=sizes.trained if layout.keep_gathered else sizes.outside,
        )
        for elements, ranks in parts
        if elements
    ]
    return Traffic(sum(each.gradients for each in sent), sum(each.weights for each in sent))


def _update_bytes(layout: Layout, sizes: Sizes, ema: bool) -> float:
    """Gradient, master and two moments are read, all but the gradient written; working weights beside masters too; of
    the average and the master one is written."""
    elements = own_elements(layout, sizes) if layout.replicated else sizes.trained / layout.world
    weights = 0 if layout.replicated or layout.family == "fsdp" else layout.width
    return (28 + weights) * elements + (12 * sizes.trained / layout.world if ema else 0)


@dataclass(frozen=True)
class Seconds:
    """Where a step's time goes; nothing is taken to overlap."""

    compute: float
    exchange: float
    sequence: float
    update: float

    @property
    def total(self) -> float:
        return self.compute + self.exchange + self.sequence + self.update


def seconds(found: Estimate, gpu: Gpu, efficiency: float = EFFICIENCY) -> Seconds:
    """The time of a step at the stated rates, of which products reach `efficiency` and links LINK_EFFICIENCY."""
    layout = found.layout
    inside, outside = (1e9 * LINK_EFFICIENCY * rate for rate in (gpu.node_gbs, gpu.network_gbs))
    # rings over many machines use every network card of a machine, each for a part of the bytes
    ring = inside if layout.world <= gpu.per_node else min(inside, outside * gpu.per_node)
    # of an all-to-all each rank sends its share of every other rank's bytes by itself
    group = layout.sp_size * layout.tp_size
    far = max(0, group - gpu.per_node) / max(1, group - 1)
    return Seconds(
        compute=(found.model_flops + found.frozen_flops) / (1e12 * gpu.tflops(layout.dtype) * efficiency),
        exchange=found.traffic.total / ring,
        sequence=found.sequence_bytes * (far / outside + (1 - far) / inside),
        # the host updates what is offloaded to it; its rates are not stated
        update=0.0 if layout.cpu_offload else found.update_bytes / (1e9 * gpu.memory_gbs),
    )
