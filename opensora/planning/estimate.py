"""The cost of a training step under one layout: memory of a rank, arithmetic, traffic, and time at stated rates."""

from collections.abc import Callable
from dataclasses import dataclass, field

from opensora.planning.communication import Traffic, plugin_traffic
from opensora.planning.device_specs import EFFICIENCY, LINK_EFFICIENCY, Gpu
from opensora.planning.memory import (
    WIDTHS,
    ModelSizes,
    ParallelLayout,
    host_bytes,
    local_elements,
    memory_points,
    state_bytes,
    waiting_gradients,
)
from opensora.planning.meta_profile import StepProfile

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

    sizes: ModelSizes
    frozen: FrozenNetworks
    profile_step: Callable[[ParallelLayout], StepProfile]
    tokens: int  # of one micro-batch
    ema: bool
    max_sequence_ranks: int = 1  # the most ranks that can share a sample's tokens so that each has work
    loss_networks: dict[str, int] = field(default_factory=dict)  # bytes of networks that only the loss uses
    discriminator: ModelSizes | None = None  # under the same plugin as the model
    _profiles: dict[tuple, StepProfile] = field(default_factory=dict)

    def profile(self, layout: ParallelLayout) -> StepProfile:
        """`profile_step(layout)`, computed once for layouts with equal profiles."""
        key = (layout.sp_size, layout.sp_mode, layout.tp_size, layout.grad_checkpoint, layout.width, layout.dtype)
        if key not in self._profiles:
            self._profiles[key] = self.profile_step(layout)
        return self._profiles[key]

    def loss_network_bytes(self, layout: ParallelLayout) -> dict[str, int]:
        """Bytes on one rank of the networks that only the loss uses."""
        if self.discriminator is None:
            return self.loss_networks
        gradients = 4 * self.discriminator.trained // (layout.world if layout.family == "zero2" else 1)
        state = sum(state_bytes(layout, self.discriminator, ema=False).values())
        activations = self.loss_networks.get("discriminator", 0)
        return {**self.loss_networks, "discriminator": activations + state + gradients}


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
    profile, sizes = step.profile(layout), step.sizes
    state = state_bytes(layout, sizes, step.ema) | step.frozen.weight_bytes(layout) | step.loss_network_bytes(layout)
    encoding = {"activations": step.frozen.encoding_bytes, "gradients": waiting_gradients(layout, sizes)}
    stages = [(STEP, point) for point in memory_points(layout, sizes, profile)] + [(ENCODING, encoding)]
    peak_stage, peak = max(stages, key=lambda stage: sum(stage[1].values()))
    return Estimate(
        layout=layout,
        memory={name: value for name, value in (state | peak).items() if value},
        peak_stage=peak_stage,
        host=host_bytes(layout, sizes, step.ema),
        saved_activations=profile.saved,
        peak_activations=profile.peak,
        traffic=_traffic(layout, sizes),
        sequence_bytes=layout.micro_batches * profile.sent,
        model_flops=layout.micro_batches * (profile.forward_flops + profile.backward_flops),
        frozen_flops=layout.micro_batches * step.frozen.flops,
        update_bytes=_update_bytes(layout, sizes, step.ema),
        tokens=step.tokens * layout.micro_batches * layout.data_size,
    )


def _traffic(layout: ParallelLayout, sizes: ModelSizes) -> Traffic:
    """The plugin's traffic; under hybrid a shard goes to the ranks that hold the same one, the rest to all."""
    sharded = sizes.tensor_sharded if layout.tp_size > 1 else 0
    parts = [(sizes.trained - sharded, layout.world), (sharded // layout.tp_size, layout.world // layout.tp_size)]
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


def _update_bytes(layout: ParallelLayout, sizes: ModelSizes, ema: bool) -> float:
    """Bytes that the update moves. It reads gradient, master and two moments and writes all but the gradient, and the
    working weights where these are not the masters. EMA reads both and writes one."""
    elements = local_elements(layout, sizes) if layout.replicated else sizes.trained / layout.world
    weights = 0 if layout.replicated or layout.family == "fsdp" else layout.width
    return (28 + weights) * elements + (12 * sizes.trained / layout.world if ema else 0)


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
        update=0.0 if layout.cpu_offload else estimate.update_bytes / (1e9 * gpu.memory_gbs),
    )
