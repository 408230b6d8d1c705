"""The cost of a training step under one layout: memory of a rank, arithmetic, traffic, and time at stated rates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from opensora.parallel.step_costs import StepMemory, StepSizes, Traffic
from opensora.planning.device_specs import EFFICIENCY, LINK_EFFICIENCY, Gpu
from opensora.planning.meta_profile import StepProfile
from opensora.planning.parallel_layout import ParallelLayout

ENCODING, STEP = "while a clip is encoded", "in forward, backward or update"


@dataclass(frozen=True)
class FrozenNetworks:
    """The autoencoder and the text encoder of a denoiser: bytes of their weights, and the cost of one micro-batch."""

    weights: dict[str, int] = field(default_factory=dict)
    text_bytes: int = 0  # of the text encoder's weights
    text_parallel: str | None = None  # the run's text_encoder_parallel
    encoding_bytes: int = 0  # peak while clips are encoded
    flops: int = 0

    def weight_bytes(self, layout: ParallelLayout) -> dict[str, int]:
        """Bytes of the weights on one rank."""
        ranks = {None: 1, "shard": layout.world, "tensor": layout.sp_size * layout.tp_size}[self.text_parallel]
        return {**self.weights, "text encoder": self.text_bytes // ranks} if self.text_bytes else self.weights


@dataclass(frozen=True)
class ModelSummary:
    """Counts of a run's model that do not depend on the layout."""

    model: str
    parameters: int  # of the trained module
    frozen_parameters: int
    text_parameters: int | None  # of the text encoder; None: unknown, so not counted
    latent_size: tuple[int, ...]  # frames, rows, columns
    tokens_per_sample: int
    num_images: int = 0  # appended to each clip; their tokens are among those of the sample


@dataclass
class StepModel:
    """A training step under any layout: `profile_step(layout)` profiles one micro-batch of one rank."""

    sizes: StepSizes
    frozen: FrozenNetworks
    profile_step: Callable[[ParallelLayout], StepProfile]
    tokens: int  # of one micro-batch
    ema: bool
    max_sequence_ranks: int = 1  # the most ranks that can share a sample's tokens so that each has work
    loss_networks: dict[str, int] = field(default_factory=dict)  # bytes of networks that only the loss uses
    discriminator: StepSizes | None = None  # under the same plugin as the model
    _profiles: dict[tuple, StepProfile] = field(default_factory=dict)

    def profile(self, layout: ParallelLayout) -> StepProfile:
        """`profile_step(layout)`, computed once for layouts with equal profiles."""
        key = (
            layout.sp_size,
            layout.sp_mode,
            layout.tp_size,
            layout.grad_checkpoint,
            layout.weight_dtype,
            layout.dtype,
        )
        if key not in self._profiles:
            self._profiles[key] = self.profile_step(layout)
        return self._profiles[key]

    def loss_network_bytes(self, layout: ParallelLayout) -> dict[str, int]:
        """Bytes on one rank of the networks that only the loss uses."""
        if self.discriminator is None:
            return self.loss_networks
        memory = layout.built.memory(layout.step_sizes(self.discriminator))
        gradients, _ = memory.update[-1]
        state = sum(map(int, memory.state.values()))
        activations = self.loss_networks.get("discriminator", 0)
        return {**self.loss_networks, "discriminator": activations + state + int(gradients)}


@dataclass(frozen=True)
class Estimate:
    """Bytes and operations of one rank in one optimizer step."""

    layout: ParallelLayout
    memory: dict[str, int]  # at the peak
    peak_stage: str  # in words
    host: int
    saved_activations: int  # between forward and backward
    peak_activations: int  # with recomputed and short-lived ones
    traffic: Traffic
    sequence_bytes: int  # sent to the other ranks that share the samples: tokens, and under hybrid sums over heads
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


def estimate(step: StepModel, layout: ParallelLayout) -> Estimate:
    """Estimate a layout; the profile, which is slow, is shared by layouts with the same activations."""
    profile, sizes = step.profile(layout), layout.step_sizes(step.sizes)
    memory = layout.built.memory(sizes)
    ema_bytes = 4 * sizes.share if step.ema else 0
    state = {name: int(value) for name, value in memory.state.items()}
    if not memory.host:
        state["averaged weights (EMA)"] = int(ema_bytes)
    state |= step.frozen.weight_bytes(layout) | step.loss_network_bytes(layout)
    encoding = {"activations": step.frozen.encoding_bytes, "gradients": memory.waiting}
    stages = [(STEP, point) for point in _memory_points(memory, profile)] + [(ENCODING, encoding)]
    peak_stage, peak = max(stages, key=lambda stage: sum(stage[1].values()))
    return Estimate(
        layout=layout,
        memory={name: value for name, value in (state | peak).items() if value},
        peak_stage=peak_stage,
        host=int(memory.host + ema_bytes) if memory.host else 0,
        saved_activations=profile.saved,
        peak_activations=profile.peak,
        traffic=layout.built.traffic(sizes),
        sequence_bytes=layout.micro_batches * profile.sent,
        model_flops=layout.micro_batches * (profile.forward_flops + profile.backward_flops),
        frozen_flops=layout.micro_batches * step.frozen.flops,
        update_bytes=memory.update_bytes + 3 * ema_bytes,  # EMA reads itself and the master and writes itself
        tokens=step.tokens * layout.micro_batches * layout.data_size,
    )


def _memory_points(memory: StepMemory, profile: StepProfile) -> Iterator[dict[str, int]]:
    """Yield the bytes on top of the state at each point of the last micro-batch and of the update after it."""
    backward = [(point.live, *memory.backward(point.gradients)) for point in profile.points]
    for live, gradients, buffers in [*backward, *((0, *pair) for pair in memory.update)]:
        yield {"activations": int(live), "gradients": int(gradients), "communication buffers": int(buffers)}


@dataclass(frozen=True)
class Seconds:
    """Seconds of the parts of a step; nothing is assumed to overlap."""

    compute: float
    exchange: float
    sequence: float
    update: float

    @property
    def total(self) -> float:
        return self.compute + self.exchange + self.sequence + self.update


def seconds(estimate: Estimate, gpu: Gpu, efficiency: float = EFFICIENCY) -> Seconds:
    """The time of a step where matrix products reach `efficiency` of the stated rate, and links LINK_EFFICIENCY."""
    layout = estimate.layout
    inside, outside = (1e9 * LINK_EFFICIENCY * rate for rate in (gpu.node_gbs, gpu.network_gbs))
    # rings over many machines use every network card of a machine, each for a part of the bytes
    ring = inside if layout.world <= gpu.per_node else min(inside, outside * gpu.per_node)
    # of an all-to-all each rank sends its share of every other rank's bytes by itself
    group = layout.sp_size * layout.tp_size
    far = max(0, group - gpu.per_node) / max(1, group - 1)
    return Seconds(
        compute=(estimate.model_flops + estimate.frozen_flops) / (1e12 * gpu.tflops(layout.dtype) * efficiency),
        exchange=estimate.traffic.total / ring,
        sequence=estimate.sequence_bytes * (far / outside + (1 - far) / inside),
        # the host updates what is offloaded to it; its rates are not stated
        update=0.0 if estimate.host else estimate.update_bytes / (1e9 * gpu.memory_gbs),
    )
