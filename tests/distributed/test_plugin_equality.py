"""One run, however it is shared: the same losses, gradient norms and weights as plain PyTorch on one process."""

import math
from typing import Any

import pytest
import torch

from opensora.parallel import collectives, world
from tests.dist import RankError, run_ranks
from tests.distributed import tiny

STEPS = 10


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    losses, norms, weights = tiny.run_plainly(STEPS)
    assert max(norms) > 2 * tiny.GRAD_CLIP  # clipping is at work
    assert losses[-1] < losses[0]
    return {"losses": losses, "norms": norms, "weights": weights}


@pytest.mark.parametrize(
    ("plugin", "ranks", "config"),
    [
        ("ddp", 1, {}),
        ("ddp", 2, {"tiny_buckets": True}),
        ("zero1", 1, {}),
        ("zero1", 2, {"tiny_buckets": True, "cpu_offload": True}),
        ("zero2", 1, {}),
        ("zero2", 2, {"tiny_buckets": True}),
        ("zero2", 4, {}),
        ("fsdp", 1, {}),
        ("fsdp", 2, {"reshard_after_forward": False}),
        ("fsdp", 4, {}),
    ],
)
def test_float32_runs_agree(plain: dict[str, Any], plugin: str, ranks: int, config: dict) -> None:
    results = run_ranks(tiny.train, ranks, plugin, "fp32", STEPS, config)
    for result in results:
        torch.testing.assert_close(result["losses"], plain["losses"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["norms"], plain["norms"], rtol=1e-5, atol=1e-6)
    assert all(not result["weights"] for result in results[1:])  # whole weights on the main rank only
    torch.testing.assert_close(
        tiny.without_noise(results[0]["weights"]), tiny.without_noise(plain["weights"]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("plugin", ["ddp", "zero1", "zero2", "fsdp"])
def test_bfloat16_does_not_depend_on_the_number_of_ranks(plain: dict[str, Any], plugin: str) -> None:
    alone = run_ranks(tiny.train, 1, plugin, "bf16", STEPS, {})[0]
    shared = run_ranks(tiny.train, 2, plugin, "bf16", STEPS, {})[0]
    torch.testing.assert_close(shared["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shared["losses"], plain["losses"], rtol=2e-2, atol=2e-3)
    assert shared["losses"] != plain["losses"]  # it did run in bfloat16


def test_bfloat16_on_the_wire_stays_close() -> None:
    exact = run_ranks(tiny.train, 2, "zero2", "fp32", STEPS, {})[0]
    rounded = run_ranks(tiny.train, 2, "zero2", "fp32", STEPS, {"communication_dtype": "bf16"})[0]
    torch.testing.assert_close(rounded["losses"], exact["losses"], rtol=2e-2, atol=2e-3)
    assert rounded["losses"] != exact["losses"]


def untouched_parameters(plugin: str) -> tuple[bool, bool, bool]:
    """True for each of `never`, `sometimes` and `frozen` that has its first values after two steps."""
    engine = tiny.make_engine(plugin)
    tiny.run_steps(engine, 0, 2)
    now, first = engine.gather_state_dict(), tiny.make().state_dict()
    return tuple(now == {} or torch.equal(now[name], first[name]) for name in ("never", "sometimes", "frozen"))


def touched_on_one_rank(plugin: str) -> bool:
    engine = tiny.make_engine(plugin)
    tiny.run_steps(engine, 0, 3)
    return engine.gather_state_dict().get("sometimes", torch.zeros(7)).ne(tiny.make().sometimes.detach()).all().item()


@pytest.mark.parametrize("plugin", ["ddp", "zero1", "zero2", "fsdp"])
def test_parameters_without_gradient_are_left_alone(plugin: str) -> None:
    """Not even weight decay may move what no sample used; what one rank used moves on all."""
    assert run_ranks(untouched_parameters, 2, plugin)[0] == (True, True, True)
    assert run_ranks(touched_on_one_rank, 2, plugin)[0]


def meet_infinity(plugin: str, dtype: str) -> None:
    engine = tiny.make_engine(plugin, dtype)
    tiny.run_steps(engine, 0, 1)
    before = {name: piece.clone() for name, piece in engine.master_shards()}
    x, t, _ = tiny.micro_batch(1, 0)
    scale = float("inf") if world.current().data_rank == world.current().data_size - 1 else 1.0
    with engine.accumulating(last=True):
        engine.backward((engine.model(x, t, touch=True) * scale).square().mean())
    assert not math.isfinite(engine.grad_norm())  # on every rank, though one alone met it
    with pytest.raises(ValueError, match="gradient norm"):
        engine.update()
    engine.discard_gradients()
    for name, piece in engine.master_shards():
        assert torch.equal(piece, before[name]), name
    losses, norms = tiny.run_steps(engine, 1, 3)  # nothing of it stays behind
    assert all(map(math.isfinite, losses + norms))


@pytest.mark.parametrize("plugin", ["ddp", "zero1", "zero2", "fsdp"])
def test_nan_gradient_updates_nothing(plugin: str) -> None:
    for dtype in ("fp32", "bf16"):
        run_ranks(meet_infinity, 2, plugin, dtype)


def start_from_other_weights(plugin: str) -> list[float]:
    engine = tiny.make_engine(plugin, seed=world.current().global_rank)
    return tiny.run_steps(engine, 0, 3)[0]


@pytest.mark.parametrize("plugin", ["ddp", "zero2", "fsdp"])
def test_all_ranks_begin_with_the_weights_of_rank_0(plugin: str) -> None:
    expected, _, _ = tiny.run_plainly(3)
    torch.testing.assert_close(run_ranks(start_from_other_weights, 2, plugin)[1], expected, rtol=1e-5, atol=1e-6)


def masters_keep_float32() -> None:
    engine = tiny.make_engine("zero2", "bf16")
    exact = tiny.make()
    for name, piece in engine.master_shards():
        assert torch.equal(piece, collectives.shard(exact.get_parameter(name).detach().view(-1))), name
    weights = engine.gather_state_dict()
    if weights:
        torch.testing.assert_close(weights, exact.state_dict(), rtol=0, atol=0)  # buffers and frozen ones too
    assert engine.module.position.dtype is engine.module.frozen.dtype is torch.bfloat16


def test_bfloat16_working_weights_do_not_round_the_masters() -> None:
    run_ranks(masters_keep_float32, 2)


def set_rate(plugin: str) -> bool:
    engine = tiny.make_engine(plugin)
    before = engine.gather_state_dict()
    tiny.run_steps(engine, 0, 1, lr_factor=0.0)
    return all(torch.equal(value, before[name]) for name, value in engine.gather_state_dict().items())


@pytest.mark.parametrize("plugin", ["ddp", "zero1", "zero2", "fsdp"])
def test_the_learning_rate_reaches_the_optimizer(plugin: str) -> None:
    assert all(run_ranks(set_rate, 2, plugin))


def fail_on_rank_1() -> None:
    if world.current().global_rank == 1:
        raise ValueError("rank 1 has had enough")
    collectives.barrier()


def test_the_pool_reports_the_rank_that_failed_and_recovers() -> None:
    with pytest.raises(RankError, match="rank 1 has had enough"):
        run_ranks(fail_on_rank_1, 2)
    assert run_ranks(collectives.gather_objects, 2, "here") == [["here", "here"]] * 2
