"""Bytes of each plugin at its fullest, counted by hand, and what its exchange sends."""

from dataclasses import replace
from typing import Any

import pytest

from opensora.errors import ConfigError
from opensora.parallel.traffic import plugin_traffic
from opensora.planning.estimate import ENCODING, Frozen, Subject, estimate, seconds
from opensora.planning.memory import Layout, Sizes, host_bytes
from opensora.planning.rates import Gpu, gpu_named
from opensora.planning.rehearsal import Moment, Rehearsal
from opensora.planning.search import smallest, usable_bytes

P = 1000  # parameters, all in one block
SIZES = Sizes(trained=P, largest=100, blocks=250)


def subject(activations: int = 0, **changes: Any) -> Subject:
    """Activations are there at the start of the backward, shared by the ranks of a sequence group, and few recomputed."""

    def rehearse(layout: Layout) -> Rehearsal:
        live = activations // layout.sp_size // (10 if layout.grad_checkpoint else 1)
        sent = 50 * (layout.sp_size - 1)
        return Rehearsal(live, (Moment(0, live), Moment(P, 0)), forward_flops=100, backward_flops=200, sent=sent)

    return Subject(**{"sizes": SIZES, "frozen": Frozen(), "rehearse": rehearse, "tokens": 6, "ema": False, **changes})


def layout(plugin: str, world: int = 2, **changes: Any) -> Layout:
    return Layout(**{"plugin": plugin, "world": world, "micro_batches": 1, "bucket_elements": 100, **changes})


# weights, masters, moments; then gradients and buffers at the fullest moment
CASES = {
    # all flat copies of float32 gradients are on their way when the last comes
    ("ddp", 2): 4 * P + 8 * P + 4 * P + 4 * P,
    ("ddp", 1): 4 * P + 8 * P + 4 * P,
    # a bucket of 100 of which pieces are narrowed, joined, and gathered from two ranks; a parameter of 100
    ("zero1", 2): 2 * P + 2 * P + 4 * P + 4 * P + 2 * (100 * (1 + 1 + 2) + 100),
    ("zero2", 2): 2 * P + 2 * P + 4 * P + 2 * P + 2 * (100 * (1 + 1 + 2) + 100),
    # two units of 250 and one that is summed
    ("fsdp", 2): 2 * P + 4 * P + 2 * P + 2 * 2 * 250 + 4 * 250,
}


@pytest.mark.parametrize(("plugin", "world"), CASES, ids=str)
def test_the_fullest_moment(plugin: str, world: int) -> None:
    assert estimate(subject(), layout(plugin, world)).total == CASES[plugin, world]


def test_activations_and_gradients_are_not_added_up_at_their_own_peaks() -> None:
    """Activations are most when there are no gradients yet; with earlier micro-batches there are."""
    alone = estimate(subject(activations=40 * P), layout("ddp", 1))
    assert alone.memory == {"weights": 4 * P, "optimizer moments": 8 * P, "activations": 40 * P}
    later = estimate(subject(activations=40 * P), layout("ddp", 1, micro_batches=2))
    assert later.memory == {**alone.memory, "gradients": 4 * P}


@pytest.mark.parametrize(
    ("plugin", "exchanged"), [("ddp", 2 * P + 2 * P), ("zero1", 4 * 400 + 8 * 100), ("zero2", 2 * 400 + (8 + 2) * 100)]
)
def test_half_way_through_the_backward(plugin: str, exchanged: int) -> None:
    """Half of the gradients are made; under zero all but a bucket of them have been exchanged."""
    middle = Rehearsal(0, (Moment(0, 0), Moment(P // 2, 90 * P), Moment(P, 0)), 1, 2)
    found = estimate(subject(rehearse=lambda layout: middle), layout(plugin)).memory
    assert found["activations"] == 90 * P
    assert found.get("gradients", 0) + found.get("communication buffers", 0) == exchanged


def test_encoding_may_be_the_fullest_moment() -> None:
    found = estimate(subject(frozen=Frozen({"frozen autoencoder": 7}, encoding_bytes=90 * P)), layout("ddp", 1))
    assert (found.when, found.memory["activations"], found.memory["frozen autoencoder"]) == (ENCODING, 90 * P, 7)


def test_offloaded_state_is_on_the_host() -> None:
    here, there = (estimate(subject(), layout("zero2", cpu_offload=flag)) for flag in (False, True))
    assert here.total - there.total == (4 + 8) * P / 2
    assert (here.host, there.host) == (0, 12 * P // 2)
    assert host_bytes(layout("zero2", cpu_offload=True), SIZES, ema=True) == 16 * P // 2


def test_gloo_holds_once_more_what_it_gathers() -> None:
    assert estimate(subject(), layout("zero1", gloo=True)).total == CASES["zero1", 2] + 2 * 100 * 2


def test_traffic_by_hand() -> None:
    """Of m bytes a ring passes on m (n - 1) / n for a reduce-scatter or an all-gather, and twice that for an all-reduce."""
    given = {"parameters": P, "ranks": 4, "micro_batches": 3, "weight_bytes": 2, "wire_bytes": 4}
    sent = {name: plugin_traffic(name, **given) for name in ("ddp", "zero1", "zero2", "zero2-seq", "fsdp")}  # type: ignore[arg-type]
    once = P * 3 // 4
    assert (sent["ddp"].gradients, sent["ddp"].weights) == (2 * 4 * once, 0)
    assert (sent["zero1"].gradients, sent["zero1"].weights) == (2 * 4 * once, 2 * once)
    assert (sent["zero2"].gradients, sent["zero2"].weights) == (3 * 4 * once, 2 * once)
    assert sent["zero2-seq"] == sent["zero2"]
    assert (sent["fsdp"].gradients, sent["fsdp"].weights) == (3 * 4 * once, 3 * 2 * 2 * once)
    assert plugin_traffic("zero2", **{**given, "ranks": 1}).total == 0  # type: ignore[arg-type]


CARD = Gpu("card", 100, 10, 1.0, 1000, 100, 10, per_node=2)


def test_seconds_by_hand() -> None:
    found = estimate(subject(), layout("zero2-seq", world=4, sp_size=4, micro_batches=2))
    spent = seconds(found, CARD, efficiency=0.5)
    assert spent.compute == pytest.approx(2 * 300 / 50e12)
    # zero2: two times float32 gradients and bf16 weights; a ring over machines has two cards' networks of 10 GB/s
    assert spent.exchange == pytest.approx((2 * 4 + 2) * P * 0.75 / (0.8 * 20e9))
    # of three others one is near
    assert spent.sequence == pytest.approx(2 * 150 * (1 / 3 / 80e9 + 2 / 3 / 8e9))
    assert spent.update == pytest.approx(30 * P / 4 / 1000e9)
    assert spent.total == spent.compute + spent.exchange + spent.sequence + spent.update
    assert found.tokens == 6 * 2  # two micro-batches of the one group
    slow = seconds(replace(found, layout=replace(found.layout, dtype="fp32")), CARD, 0.5)
    assert slow.compute == pytest.approx(10 * spent.compute)


PLUGINS = ("ddp", "fsdp", "zero1", "zero2", "zero1-seq", "zero2-seq")


def fitting(limit: float, activations: int, frames: int = 8, **changes: Any) -> Any:
    card = replace(CARD, memory_gb=limit / 0.9e9)
    current = layout("ddp", world=4, **changes)
    return smallest(subject(activations, frames=frames, heads=2), current, 4, card, PLUGINS)


def test_the_smallest_layout_that_fits() -> None:
    """Weights and state take at least 6.5 P under zero2 and 9 P with its gradients and buckets."""
    roomy = fitting(200 * P, activations=100 * P).best.layout
    assert (roomy.plugin, roomy.sp_size, roomy.grad_checkpoint) == ("zero2", 1, False)  # fewest bytes of those that fit
    recomputed = fitting(30 * P, activations=100 * P).best.layout
    assert (recomputed.sp_size, recomputed.grad_checkpoint, recomputed.cpu_offload) == (1, True, False)
    shared = fitting(30 * P, activations=400 * P).best.layout
    assert (shared.sp_size, shared.grad_checkpoint) == (2, True)
    assert shared.micro_batches == 2


def test_nothing_fits() -> None:
    found = fitting(2 * P, activations=10 * P)
    assert found.best is None
    assert found.missing == found.nearest.total - found.limit > 0
    assert found.nearest.layout.sp_size == 4


def test_hopeless_layouts_are_not_rehearsed() -> None:
    """4000 P on four ranks is more than 50 P, recomputed 400 P too; one rank is tried with and without."""
    asked = []
    found = subject(4000 * P, frames=8)
    rehearse = found.rehearse
    found.rehearse = lambda layout: asked.append((layout.sp_size, layout.grad_checkpoint)) or rehearse(layout)  # type: ignore[func-returns-value]
    card = replace(CARD, memory_gb=50 * P / 0.9e9)
    assert smallest(found, layout("ddp", world=4), 4, card, PLUGINS).best is None
    assert set(asked) == {(1, False), (1, True)}


@pytest.mark.parametrize(("mode", "frames", "expected"), [("dsp", 2, 2), ("dsp", 8, 4), ("ulysses", 8, 2)])
def test_no_more_ranks_than_frames_or_heads(mode: str, frames: int, expected: int) -> None:
    assert fitting(2 * P, activations=10 * P, frames=frames, sp_mode=mode).nearest.layout.sp_size == expected


def test_stated_rates() -> None:
    h100 = gpu_named("h100")
    assert (h100.memory_bytes, h100.tflops("bf16"), h100.per_node) == (80_000_000_000, 989.4, 8)
    assert usable_bytes(h100) == 72_000_000_000
    with pytest.raises(ConfigError, match=r"key 'gpu': found 'h101'; allowed: h100, .*ascend-910b.*cpu; "):
        gpu_named("h101")
