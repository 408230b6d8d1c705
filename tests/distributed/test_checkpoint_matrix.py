"""Resume: bit for bit on the same ranks, within rounding under another number of ranks or another plugin.

One run walks through all plugins: each ordered pair of them is a save under the first and a resume under the second.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.parallel import collectives
from opensora.schema import Precision
from opensora.training import checkpoint
from opensora.training.ema import Ema
from tests.dist import run_ranks
from tests.distributed import tiny

SAVED, STEPS = 4, 8
RANKS = {"ddp": (1, 2), "zero1": (2, 4), "zero2": (4, 1, 2), "fsdp": (2, 4)}  # taken in turn at each visit


def write(folder: str, plugin: str, dtype: str) -> dict[str, Any]:
    """Train, saving on the way; what the uninterrupted run does after the save."""
    engine = tiny.make_engine(plugin, dtype)
    ema = Ema(engine, decay=0.9)
    tiny.run_steps(engine, 0, SAVED, ema.update)
    engine.module.calls += 7  # a buffer the model changes itself
    state = {**engine.state(), **ema.state()}
    checkpoint.save(folder, SAVED, state, {"model": engine.gather_state_dict()}, {"model": {}}, {"plugin": plugin}, 0)
    return go_on(engine, ema, SAVED)


def resume(folder: str, plugin: str, dtype: str) -> dict[str, Any]:
    """Take the run up in an engine that began with other weights."""
    engine = tiny.make_engine(plugin, dtype, seed=5)
    ema = Ema(engine, decay=0.9)
    latest = checkpoint.find(folder)
    assert latest is not None
    state = {**engine.state(), **ema.state()}
    checkpoint.load(latest, state)
    engine.load_state(state)
    ema.load_state(state)
    return go_on(engine, ema, latest.step)


def go_on(engine: Any, ema: Ema, step: int, steps: int = STEPS) -> dict[str, Any]:
    losses, norms = tiny.run_steps(engine, step, steps, ema.update)
    return {"losses": losses, "norms": norms, "weights": engine.gather_state_dict(), "ema": ema.weights()}


@pytest.mark.parametrize(
    ("plugin", "ranks"), [("ddp", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero2", 4), ("fsdp", 2)]
)
def test_same_ranks_resume_bit_exact(tmp_path: Path, plugin: str, ranks: int) -> None:
    for dtype in ("fp32", "bf16"):
        folder = str(tmp_path / dtype)
        uninterrupted = run_ranks(write, ranks, folder, plugin, dtype)[0]
        resumed = run_ranks(resume, ranks, folder, plugin, dtype)[0]
        assert resumed["losses"] == uninterrupted["losses"], dtype
        assert resumed["norms"] == uninterrupted["norms"], dtype
        for part in ("weights", "ema"):
            torch.testing.assert_close(resumed[part], uninterrupted[part], rtol=0, atol=0)
        assert resumed["weights"]["calls"] == 7


def walk(plugins: Sequence[str]) -> list[str]:
    """A closed path that takes every ordered pair of the plugins once, beginning with the first."""
    left = {start: [end for end in reversed(plugins) if end != start] for start in plugins}
    stack, path = [plugins[0]], []
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            path.append(stack.pop())
    return path[::-1]


def test_walk_takes_each_ordered_pair_once() -> None:
    path = walk(list(RANKS))
    assert sorted(itertools.pairwise(path)) == sorted(itertools.permutations(RANKS, 2))


def leg(folder: str, plugin: str, dtype: Precision, first: int) -> dict[str, Any]:
    """Resume at step `first`, make one step, save."""
    engine = tiny.make_engine(plugin, dtype, seed=first)
    ema = Ema(engine, decay=0.9)
    if first:
        saved = checkpoint.find(folder)
        assert saved is not None
        assert saved.step == first
        state = {**engine.state(), **ema.state()}
        checkpoint.load(saved, state)
        engine.load_state(state)
        ema.load_state(state)
    losses, norms = tiny.run_steps(engine, first, first + 1, ema.update)
    checkpoint.save(folder, first + 1, {**engine.state(), **ema.state()}, {}, {}, {}, 0)
    return {"losses": losses, "norms": norms, "weights": engine.gather_state_dict(), "ema": ema.weights()}


def whole(plugin: str, dtype: Precision, steps: int) -> dict[str, Any]:
    engine = tiny.make_engine(plugin, dtype)
    return go_on(engine, Ema(engine, decay=0.9), 0, steps)


@pytest.mark.parametrize(("dtype", "plugins"), [("fp32", list(RANKS)), ("bf16", ["zero1", "zero2", "fsdp"])], ids=str)
def test_run_walks_through_all_plugins(tmp_path: Path, dtype: Precision, plugins: list[str]) -> None:
    """On 1, 2 and 4 ranks. In bfloat16 ddp has other arithmetic: float32 weights under autocast."""
    path, visits = walk(plugins), dict.fromkeys(plugins, 0)
    losses, norms = [], []
    for step, plugin in enumerate(path):
        ranks = RANKS[plugin][visits[plugin] % len(RANKS[plugin])]
        visits[plugin] += 1
        last = run_ranks(leg, ranks, str(tmp_path), plugin, dtype, step)[0]
        losses, norms = losses + last["losses"], norms + last["norms"]
    expected = run_ranks(whole, 1, path[0], dtype, len(path))[0]
    torch.testing.assert_close(losses, expected["losses"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norms, expected["norms"], rtol=1e-4, atol=1e-5)
    rounding = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tiny.without_noise(last["ema"]), tiny.without_noise(expected["ema"]), **rounding)


def average_by_hand(plugin: str) -> None:
    engine = tiny.make_engine(plugin)
    ema = Ema(engine, decay=0.9)
    expected = engine.gather_state_dict()

    def update() -> None:
        ema.update()
        for name, value in engine.gather_state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value if value.is_floating_point() else value

    tiny.run_steps(engine, 0, 3, update)
    average, now = ema.weights(), engine.gather_state_dict()
    torch.testing.assert_close(average, expected)
    assert (collectives.rank() == 0) == bool(average)
    assert not average or not torch.equal(average["qkv.weight"], now["qkv.weight"])


@pytest.mark.parametrize(("plugin", "ranks"), [("ddp", 2), ("zero2", 1), ("zero2", 2), ("fsdp", 2)])
def test_ema_equals_average_of_whole_weights(plugin: str, ranks: int) -> None:
    run_ranks(average_by_hand, ranks, plugin)
