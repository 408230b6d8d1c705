"""Bytes of each plugin at its fullest, counted by hand, and what its exchange sends."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.parallel.step_costs import StepSizes, Traffic
from opensora.planning import layout_table
from opensora.planning.device_specs import Gpu, gpu_named
from opensora.planning.estimate import ENCODING, FrozenNetworks, StepModel, estimate, seconds
from opensora.planning.meta_profile import MemoryPoint, StepProfile
from opensora.planning.parallel_layout import ParallelLayout
from opensora.planning.search import smallest_layout, usable_bytes

M = 2**20  # elements of a bucket
P = 10 * M  # parameters
SIZES = StepSizes(trained=P, largest=M, blocks=P // 4)


def step_model(activations: int = 0, **changes: Any) -> StepModel:
    """Activations are there at the start of the backward, shared by the ranks of a sequence group, and few recomputed."""

    def profile_step(layout: ParallelLayout) -> StepProfile:
        live = activations // layout.sp_size // (10 if layout.grad_checkpoint else 1)
        sent = 50 * (layout.sp_size - 1)
        return StepProfile(
            live, (MemoryPoint(0, live), MemoryPoint(P, 0)), forward_flops=100, backward_flops=200, sent=sent
        )

    return StepModel(
        **{
            "sizes": SIZES,
            "frozen": FrozenNetworks(),
            "profile_step": profile_step,
            "tokens": 6,
            "ema": False,
            **changes,
        }
    )


def layout(plugin: str, world: int = 2, **changes: Any) -> ParallelLayout:
    """changes: fields of the layout and options of the plugin."""
    names = {field.name for field in fields(ParallelLayout)}
    options = {"reduce_bucket_size_in_m": 1} if plugin.startswith("zero") else {}
    options |= {key: value for key, value in changes.items() if key not in names}
    own = {key: value for key, value in changes.items() if key in names}
    return ParallelLayout(**{"plugin": plugin, "world": world, "micro_batches": 1, "plugin_config": options, **own})


# weights, masters, moments; then gradients and buffers at the fullest moment
CASES = {
    # all flat copies of float32 gradients are on their way when the last comes
    ("ddp", 2): 4 * P + 8 * P + 4 * P + 4 * P,
    ("ddp", 1): 4 * P + 8 * P + 4 * P,
    # a bucket whose shards are narrowed, joined, and gathered from two ranks; one parameter
    ("zero1", 2): 2 * P + 2 * P + 4 * P + 4 * P + 2 * (M * (1 + 1 + 2) + M),
    ("zero2", 2): 2 * P + 2 * P + 4 * P + 2 * P + 2 * (M * (1 + 1 + 2) + M),
    # two units and one that is summed
    ("fsdp", 2): 2 * P + 4 * P + 2 * P + 2 * 2 * P // 4 + 4 * P // 4,
}


def test_sequence_ranks_average_gradients() -> None:
    assert estimate(step_model(), layout("ddp", 2, sp_size=2)).total == CASES["ddp", 2]


def test_fsdp_keeps_gathered_weights_once() -> None:
    units = estimate(step_model(), layout("fsdp", reshard_after_forward=False)).memory["communication buffers"]
    assert units == 2 * P + 4 * P // 4


@pytest.mark.parametrize(("plugin", "world"), CASES, ids=str)
def test_peak_by_hand(plugin: str, world: int) -> None:
    assert estimate(step_model(), layout(plugin, world)).total == CASES[plugin, world]


def test_peaks_of_activations_and_gradients_are_not_added() -> None:
    """Activations are most when there are no gradients yet; with earlier micro-batches there are."""
    alone = estimate(step_model(activations=40 * P), layout("ddp", 1))
    assert alone.memory == {"weights": 4 * P, "optimizer moments": 8 * P, "activations": 40 * P}
    later = estimate(step_model(activations=40 * P), layout("ddp", 1, micro_batches=2))
    assert later.memory == {**alone.memory, "gradients": 4 * P}


@pytest.mark.parametrize(
    ("plugin", "exchanged"), [("ddp", 2 * P + 2 * P), ("zero1", 4 * 4 * M + 8 * M), ("zero2", 2 * 4 * M + (8 + 2) * M)]
)
def test_middle_of_the_backward(plugin: str, exchanged: int) -> None:
    """Half of the gradients are made; under zero all but a bucket of them have been exchanged."""
    middle = StepProfile(0, (MemoryPoint(0, 0), MemoryPoint(P // 2, 90 * P), MemoryPoint(P, 0)), 1, 2)
    memory = estimate(step_model(profile_step=lambda layout: middle), layout(plugin)).memory
    assert memory["activations"] == 90 * P
    assert memory.get("gradients", 0) + memory.get("communication buffers", 0) == exchanged


def test_encoding_may_be_the_peak() -> None:
    result = estimate(
        step_model(frozen=FrozenNetworks({"frozen autoencoder": 7}, encoding_bytes=90 * P)), layout("ddp", 1)
    )
    assert (result.peak_stage, result.memory["activations"], result.memory["frozen autoencoder"]) == (
        ENCODING,
        90 * P,
        7,
    )


def test_offloaded_state_is_on_the_host() -> None:
    here, there = (estimate(step_model(), layout("zero2", cpu_offload=flag)) for flag in (False, True))
    assert here.total - there.total == (4 + 8) * P / 2
    assert (here.host, there.host) == (0, 16 * P // 2)  # gradients come over for the update
    assert estimate(step_model(ema=True), layout("zero2", cpu_offload=True)).host == 20 * P // 2


def test_fsdp_offloads_gradients() -> None:
    """fsdp moves the gradients of its pieces as well, even while earlier ones wait."""
    here, there = (estimate(step_model(), layout("fsdp", micro_batches=2, cpu_offload=flag)) for flag in (False, True))
    assert here.memory["gradients"] == 2 * P
    assert set(there.memory) == {"communication buffers"}
    assert there.host == 16 * P // 2


SHARDED = replace(SIZES, tensor_sharded=6 * M)


def hybrid(world: int, **changes: Any) -> Any:
    """Of 10 M elements 6 M are divided by two: a rank has 7 M."""
    part = StepProfile(0, (MemoryPoint(0, 0), MemoryPoint(7 * M, 0)), 1, 2)
    return estimate(
        step_model(sizes=SHARDED, profile_step=lambda layout: part, **changes), layout("hybrid", world, tp_size=2)
    )


def test_tensor_parallelism_by_hand() -> None:
    """Two ranks average the 4 M elements that both hold; of four, pairs average the other 3 M as well."""
    assert hybrid(2).total == (4 + 8 + 4) * 7 * M + 4 * 4 * M
    assert hybrid(4).total == (4 + 8 + 4 + 4) * 7 * M
    assert hybrid(2).traffic.gradients == 2 * 4 * 4 * M // 2
    assert hybrid(4).traffic.gradients == 2 * 4 * 4 * M * 3 // 4 + 2 * 4 * 3 * M // 2
    assert hybrid(2).traffic.weights == 0
    assert hybrid(2).update_bytes == 28 * 7 * M


def test_other_networks_follow_the_layout() -> None:
    def text(parallel: str | None) -> int:
        frozen = FrozenNetworks(text_bytes=800, text_parallel=parallel)
        return estimate(step_model(frozen=frozen), layout("zero2", world=4, sp_size=2)).memory["text encoder"]

    assert (text(None), text("shard"), text("tensor")) == (800, 200, 400)
    both = step_model(discriminator=StepSizes(10), loss_networks={"discriminator": 7, "perceptual network": 5})
    assert estimate(both, layout("ddp")).memory["discriminator"] == 7 + (4 + 8 + 4) * 10
    assert estimate(both, layout("zero2")).memory["discriminator"] == 7 + 2 * 10 + (4 + 8 + 4) * 10 // 2
    assert estimate(both, layout("zero2")).memory["perceptual network"] == 5


def test_gloo_copies_once_more() -> None:
    assert estimate(step_model(), layout("zero1", gloo=True)).total == CASES["zero1", 2] + 2 * M * 2


def test_traffic_by_hand() -> None:
    """Of m bytes a ring passes on m (n - 1) / n for a reduce-scatter or an all-gather, and twice that for an all-reduce."""

    def sent(plugin: str, ranks: int = 4, **options: Any) -> Traffic:
        sizes = replace(SIZES, ranks=ranks, micro_batches=3)
        return layout(plugin, ranks, **options).built.traffic(sizes)

    once = P * 3 // 4
    assert sent("ddp") == Traffic(2 * 4 * once, 0)
    assert sent("zero1") == Traffic(2 * 4 * once, 2 * once)
    assert sent("zero2") == sent("zero2-seq") == Traffic(3 * 4 * once, 2 * once)
    assert sent("zero2", communication_dtype="bf16") == Traffic(3 * 2 * once, 2 * once)
    assert sent("fsdp") == Traffic(3 * 4 * once, 3 * 2 * 2 * once)
    assert sent("fsdp", reshard_after_forward=False) == Traffic(3 * 4 * once, 3 * 2 * once)
    outside = replace(SIZES, outside=P // 2, ranks=4, micro_batches=3)  # gathered once
    assert layout("fsdp").built.traffic(outside).weights == 3 * (2 + 1) * 2 * once // 2
    assert sent("zero2", ranks=1).total == 0


CARD = Gpu("card", 100, 10, 1.0, 1000, 100, 10, per_node=2)
ROOMY = replace(CARD, memory_gb=1000)


def test_seconds_by_hand() -> None:
    result = estimate(step_model(), layout("zero2-seq", world=4, sp_size=4, micro_batches=2))
    spent = seconds(result, CARD, efficiency=0.5)
    assert spent.compute == pytest.approx(2 * 300 / 50e12)
    # zero2: two times float32 gradients and bf16 weights; a ring over machines has two cards' networks of 10 GB/s
    assert spent.exchange == pytest.approx((2 * 4 + 2) * P * 0.75 / (0.8 * 20e9))
    # of three others one is near
    assert spent.sequence == pytest.approx(2 * 150 * (1 / 3 / 80e9 + 2 / 3 / 8e9))
    assert spent.update == pytest.approx(30 * P / 4 / 1000e9)
    assert spent.total == spent.compute + spent.exchange + spent.sequence + spent.update
    assert result.tokens == 6 * 2  # two micro-batches of the one group
    slow = seconds(replace(result, layout=replace(result.layout, dtype="fp32")), CARD, 0.5)
    assert slow.compute == pytest.approx(10 * spent.compute)


def test_update_by_hand() -> None:
    """Gradient 4, master 8, two moments 16 bytes; a working weight of 2; 12 for the average."""
    assert estimate(step_model(), layout("ddp")).update_bytes == 28 * P
    assert estimate(step_model(), layout("fsdp")).update_bytes == 28 * P / 2
    assert estimate(step_model(), layout("zero2")).update_bytes == 30 * P / 2
    assert estimate(step_model(ema=True), layout("zero2")).update_bytes == (30 + 12) * P / 2
    assert seconds(estimate(step_model(), layout("zero2", cpu_offload=True)), CARD).update == 0


PLUGINS = ("ddp", "fsdp", "zero1", "zero2", "zero1-seq", "zero2-seq")


def fitting(limit: float, activations: int, max_sequence_ranks: int = 8, **changes: Any) -> Any:
    card = replace(CARD, memory_gb=limit / 0.9e9)
    current = layout("ddp", world=4, **changes)
    return smallest_layout(step_model(activations, max_sequence_ranks=max_sequence_ranks), current, 4, card, PLUGINS)


def test_smallest_layout_order() -> None:
    """Weights and state take at least 6.5 P under zero2 and 9 P with its gradients and buckets."""
    roomy = fitting(200 * P, activations=100 * P).best.layout
    assert (roomy.plugin, roomy.sp_size, roomy.grad_checkpoint) == ("zero2", 1, False)  # fewest bytes of those that fit
    recomputed = fitting(30 * P, activations=100 * P).best
    assert (recomputed.layout.sp_size, recomputed.layout.grad_checkpoint, recomputed.host) == (1, True, 0)
    shared = fitting(30 * P, activations=400 * P).best.layout
    assert (shared.sp_size, shared.grad_checkpoint) == (2, True)
    assert shared.micro_batches == 2


def test_nothing_fits() -> None:
    result = fitting(2 * P, activations=10 * P)
    assert result.best is None
    assert result.missing == result.nearest.total - result.limit > 0
    assert result.nearest.layout.sp_size == 4


def test_hopeless_layouts_are_not_profiled() -> None:
    """4000 P on four ranks is more than 50 P, recomputed 400 P too; one rank is tried with and without."""
    profiled = []
    step = step_model(4000 * P, max_sequence_ranks=8)
    profile_step = step.profile_step
    step.profile_step = lambda layout: profiled.append((layout.sp_size, layout.grad_checkpoint)) or profile_step(layout)  # type: ignore[func-returns-value]
    card = replace(CARD, memory_gb=50 * P / 0.9e9)
    assert smallest_layout(step, layout("ddp", world=4), 4, card, PLUGINS).best is None
    assert set(profiled) == {(1, False), (1, True)}


def test_one_plugin_does_not_rule_out_others() -> None:
    """ddp keeps narrow copies of its weights as well: 150 P are too much for two ranks of 62 P, 100 P are not."""

    def profile_step(layout: ParallelLayout) -> StepProfile:
        kept = 100 * P // layout.sp_size + (50 * P if layout.weight_dtype is torch.float32 else 0)
        return StepProfile(kept, (MemoryPoint(0, kept), MemoryPoint(P, 0)), 100, 200)

    card = replace(CARD, memory_gb=62 * P / 0.9e9)
    best = smallest_layout(
        step_model(profile_step=profile_step, max_sequence_ranks=4), layout("ddp", world=4), 4, card, PLUGINS
    ).best
    assert best is not None
    assert (best.layout.plugin, best.layout.sp_size) == ("zero1-seq", 2)


def test_no_sequence_ranks_without_work() -> None:
    assert fitting(2 * P, activations=10 * P, max_sequence_ranks=2).nearest.layout.sp_size == 2


@pytest.mark.parametrize(
    "current",
    [layout("zero2-seq", 4, sp_size=4), layout("hybrid", 4, tp_size=4), layout("hybrid", 4, tp_size=2, sp_size=2)],
)
def test_sp_size_of_the_run_is_searched_even_if_ranks_idle(current: Any) -> None:
    """One micro-batch leaves one group of four ranks, though only two of them have work."""
    best = smallest_layout(step_model(10 * P, max_sequence_ranks=2), current, 1, CARD, PLUGINS).best.layout  # type: ignore[union-attr]
    assert (best.sp_size, best.tp_size, best.micro_batches) == (4, 1, 1)


def test_cpu_is_not_offloaded() -> None:
    assert fitting(2 * P, activations=0, gloo=True).nearest.host == 0
    assert fitting(2 * P, activations=0).nearest.host > 0


def test_table_keeps_plugin_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of half the width on the wire, with bfloat16 weights: 4 bytes of an element in place of 6."""
    monkeypatch.setattr(layout_table, "CLIPS", ((1, 8, 8),))
    monkeypatch.setattr(layout_table, "WORLDS", (2,))
    big = step_model(sizes=StepSizes(trained=10**9))

    def sent(dtype: str) -> str:
        return next(
            layout_table.rows(lambda clip: (big, layout("zero2", communication_dtype=dtype)), ROOMY, ["zero2"])
        )[5]

    assert (sent("fp32"), sent("bf16")) == ("3.00", "2.00")


def test_stated_rates() -> None:
    h100 = gpu_named("h100")
    assert (h100.memory_bytes, h100.tflops("bf16"), h100.per_node) == (80_000_000_000, 989.4, 8)
    assert usable_bytes(h100) == 72_000_000_000
    with pytest.raises(ConfigError, match=r"'gpu'.*'h101'.*h100, .*ascend-910b.*cpu"):
        gpu_named("h101")
