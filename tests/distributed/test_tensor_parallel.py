"""Ranks that share the heads and hidden units of each block have the losses, norms and checkpoints of one rank."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.parallel import collectives, world
from opensora.parallel.activation_checkpointing import checkpoint_activations
from opensora.parallel.colossal.accelerator import set_accelerator
from opensora.parallel.colossal.tensor_policy import boost
from opensora.parallel.engine import Engine, EngineOptions
from opensora.parallel.sequence_parallel import shard_sequence
from opensora.parallel.tensor_parallel import sequence_subgroup
from opensora.registry import MODELS, PLUGINS, build
from opensora.training import checkpoint
from opensora.training.ema import Ema
from tests.dist import run_ranks
from tests.distributed import tiny
from tests.support.small_models import inputs, open_gates, small

FAMILY = ["STDiT", "STDiT2", "STDiT3", "STDiT3-XL/2-v1.3", "PixArt", "DiT", "Latte"]
STEPS = 3


def build_model(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    wide = {"hidden_size": 96, "num_heads": 4} if name != "LatteT2V" else {}
    return open_gates(build(MODELS, small(name, **wide)))


def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
    """SGD, whose steps are proportional to the gradients; Adam would hide gradients that are wrong by a factor."""
    return torch.optim.SGD(parameters, lr=1.0, momentum=0.9)


def make_engine(model: Any, tp_size: int, sp_size: int = 1, plugin: str = "hybrid", dtype: str = "fp32") -> Engine:
    here = world.split_sequence_groups(tp_size * sp_size) if tp_size * sp_size > 1 else world.current()
    group = sequence_subgroup(here.sequence_group, tp_size, here.timeout)
    if sp_size > 1:
        shard_sequence(model, group)
    options = {"tp_size": tp_size} if plugin == "hybrid" else {}
    return build(PLUGINS, {"type": plugin, **options}).apply(model, EngineOptions(make_optimizer, dtype, 0.05, here))


def run(engine: Engine, kwargs: dict[str, Any], first: int, last: int) -> tuple[list[float], list[float]]:
    """(mean losses, gradient norms) of steps first to last - 1; data ranks share four micro-batches of a step."""
    here = world.current()
    micro_batches = [m for m in range(4) if m % here.data_size == here.data_rank]
    losses, norms = [], []
    for step in range(first, last):
        total = torch.zeros(())
        for m in micro_batches:
            varied = {**kwargs, "x": kwargs["x"] * (1 + 0.1 * m + 0.05 * step)}
            with engine.accumulating(last=m == micro_batches[-1]):
                out = engine.model(**varied)
                target = torch.linspace(-1, 1, out.numel()).view_as(out)
                loss = (out - target).square().mean() / len(micro_batches)
                engine.backward(loss)
            total += loss.detach()
        losses.append((collectives.sum_over_ranks(total) / here.size).item())
        norms.append(tiny.update(engine))
    return losses, norms


def train(
    name: str, tp_size: int, sp_size: int, plugin: str, checkpointed: bool, dtype: str = "fp32"
) -> dict[str, Any]:
    model = build_model(name)
    kwargs = inputs(model)
    if checkpointed:
        checkpoint_activations(model.checkpoint_blocks())
    engine = make_engine(model, tp_size, sp_size, plugin, dtype)
    start = engine.gather_state_dict()
    losses, norms = run(engine, kwargs, 0, STEPS)
    kept = sum(parameter.numel() for parameter in engine.trainable.values())
    return {"losses": losses, "norms": norms, "weights": engine.gather_state_dict(), "kept": kept, "start": start}


@functools.cache
def train_alone(name: str) -> dict[str, Any]:
    """The same run on one rank without tensor parallelism."""
    return run_ranks(train, 1, name, 1, 1, "ddp", False)[0]


def assert_same(results: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for result in results:
        torch.testing.assert_close(result["losses"], alone["losses"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result["norms"], alone["norms"], rtol=1e-5, atol=1e-6)
        assert result["kept"] < 0.8 * alone["kept"]
    weights, expected, start = results[0]["weights"], alone["weights"], alone["start"]
    assert list(weights) == list(expected)
    for key, value in weights.items():
        moved = (expected[key] - start[key]).abs().max()
        assert (value - expected[key]).abs().max() <= 1e-3 * moved + 1e-6, f"{key} moved by {moved:.2e}"


@pytest.mark.parametrize("name", FAMILY)
def test_two_ranks_share_each_block(name: str) -> None:
    assert_same(run_ranks(train, 2, name, 2, 1, "hybrid", True), train_alone(name))


def test_bf16_runs_under_autocast() -> None:
    exact = train_alone("STDiT2")["losses"]
    for result in run_ranks(train, 2, "STDiT2", 2, 1, "hybrid", False, "bf16"):
        torch.testing.assert_close(result["losses"], exact, rtol=2e-2, atol=2e-3)
        assert result["losses"] != exact
        assert all(value.dtype is not torch.bfloat16 for value in result["weights"].values())


@pytest.mark.parametrize(("tp_size", "sp_size"), [(2, 1), (4, 1), (2, 2)])
def test_four_ranks_in_a_mesh(tp_size: int, sp_size: int) -> None:
    """data x tensor x sequence: 2 x 2 x 1, 1 x 4 x 1 and 1 x 2 x 2."""
    results = run_ranks(train, 4, "STDiT3-XL/2-v1.3", tp_size, sp_size, "hybrid", False)
    assert_same(results, train_alone("STDiT3-XL/2-v1.3"))


def group_timeouts() -> tuple[set[float], float]:
    """(timeouts of the groups of a hybrid run, timeout of the run), in seconds."""
    here = world.split_sequence_groups(4)
    set_accelerator(here.device)
    _, _, plugin = boost(build_model("STDiT"), 2, 2, here.timeout)
    sequence_group = sequence_subgroup(here.sequence_group, 2, here.timeout)
    groups: list[Any] = [sequence_group, plugin.tp_group, plugin.mixed_dp_group, here.sequence_group]
    options = [group._get_backend(here.device).options for group in groups]
    assert here.timeout is not None
    return {each._timeout.total_seconds() for each in options}, here.timeout.total_seconds()


def test_every_group_has_run_timeout() -> None:
    for timeouts, expected in run_ranks(group_timeouts, 4, timeout=77):
        assert timeouts == {expected} == {77}


def save(folder: str, tp_size: int, plugin: str) -> dict[str, Any]:
    model = build_model("STDiT3")
    kwargs = inputs(model)
    engine = make_engine(model, tp_size, plugin=plugin)
    ema = Ema(engine, decay=0.5)
    run(engine, kwargs, 0, 2)
    ema.update()
    checkpoint.save(folder, 2, {**engine.state(), **ema.state()}, {}, {}, {}, 0)
    return go_on(engine, ema, kwargs)


def load(folder: str, tp_size: int, plugin: str) -> dict[str, Any]:
    model = build_model("STDiT3", seed=8)
    kwargs = inputs(model)
    engine = make_engine(model, tp_size, plugin=plugin)
    ema = Ema(engine, decay=0.5)
    latest = checkpoint.find(folder)
    assert latest is not None
    state = {**engine.state(), **ema.state()}
    checkpoint.load(latest, state)
    engine.load_state(state)
    ema.load_state(state)
    return go_on(engine, ema, kwargs)


def go_on(engine: Engine, ema: Ema, kwargs: dict[str, Any]) -> dict[str, Any]:
    average = ema.weights()
    losses, norms = run(engine, kwargs, 2, 4)
    return {"losses": losses, "norms": norms, "weights": engine.gather_state_dict(), "ema": average}


def test_checkpoint_is_independent_of_tp_size(tmp_path: Path) -> None:
    first = run_ranks(save, 4, str(tmp_path), 2, "hybrid")[0]
    again = run_ranks(load, 4, str(tmp_path), 2, "hybrid")[0]
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    for ranks, tp_size, plugin in ((2, 1, "zero2"), (1, 1, "ddp"), (2, 2, "hybrid")):
        other = run_ranks(load, ranks, str(tmp_path), tp_size, plugin)[0]
        torch.testing.assert_close(other["ema"], first["ema"], rtol=0, atol=0)
        for key in ("losses", "norms"):
            torch.testing.assert_close(other[key], first[key], rtol=1e-5, atol=1e-6)


def refused(name: str, tp_size: int) -> str:
    here = world.split_sequence_groups(2)
    plugin = build(PLUGINS, {"type": "hybrid", "tp_size": tp_size})
    with pytest.raises(ConfigError) as error:
        plugin.apply(build_model(name), EngineOptions(tiny.make_optimizer, "fp32", 0.0, here))
    return str(error.value)


def one_head() -> str:
    torch.manual_seed(0)
    model = build(MODELS, small("STDiT", num_heads=3, hidden_size=72))
    with pytest.raises(ConfigError) as error:
        build(PLUGINS, {"type": "hybrid", "tp_size": 2}).apply(
            model, EngineOptions(tiny.make_optimizer, "fp32", 0.0, world.split_sequence_groups(2))
        )
    return str(error.value)


def test_unshardable_models_are_refused() -> None:
    assert "LatteT2V, which has no attention that can be cut" in run_ranks(refused, 2, "LatteT2V", 2)[0]
    assert "2 for the 3 heads of STDiT; allowed: a divisor of 3" in run_ranks(one_head, 2)[0]
    assert "groups of 2; allowed: groups of a multiple of 3" in run_ranks(refused, 2, "STDiT", 3)[0]
    with pytest.raises(ConfigError, match=r"plugin_config.pp_size.*2.*allowed: 1"):
        build(PLUGINS, {"type": "hybrid", "pp_size": 2})
