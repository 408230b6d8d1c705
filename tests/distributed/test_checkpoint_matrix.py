"""Resume: bit for bit on the same ranks, within rounding under another number of ranks or another plugin."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.parallel import collectives
from opensora.training import checkpoint
from opensora.training.ema import Ema
from tests.dist import run_ranks
from tests.distributed import tiny

SAVED, STEPS = 4, 8


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


def go_on(engine: Any, ema: Ema, step: int) -> dict[str, Any]:
    losses, norms = tiny.run_steps(engine, step, STEPS, ema.update)
    return {"losses": losses, "norms": norms, "weights": engine.gather_state_dict(), "ema": ema.weights()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("plugin", "ranks"), [("ddp", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero2", 4), ("fsdp", 2)]
)
def test_same_ranks_resume_bit_exact(tmp_path: Path, plugin: str, ranks: int, dtype: str) -> None:
    uninterrupted = run_ranks(write, ranks, str(tmp_path), plugin, dtype)[0]
    resumed = run_ranks(resume, ranks, str(tmp_path), plugin, dtype)[0]
    assert resumed["losses"] == uninterrupted["losses"]
    assert resumed["norms"] == uninterrupted["norms"]
    for part in ("weights", "ema"):
        torch.testing.assert_close(resumed[part], uninterrupted[part], rtol=0, atol=0)
    assert resumed["weights"]["calls"] == 7


PLACES = [("ddp", 1), ("ddp", 2), ("zero1", 2), ("zero2", 1), ("zero2", 2), ("zero2", 4), ("fsdp", 2)]


@pytest.mark.parametrize(("plugin", "ranks"), PLACES)
def test_fp32_resumes_under_any_plugin(tmp_path: Path, plugin: str, ranks: int) -> None:
    uninterrupted = run_ranks(write, ranks, str(tmp_path), plugin, "fp32")[0]
    for other, count in PLACES:
        resumed = run_ranks(resume, count, str(tmp_path), other, "fp32")[0]
        torch.testing.assert_close(resumed["losses"], uninterrupted["losses"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            tiny.without_noise(resumed["ema"]), tiny.without_noise(uninterrupted["ema"]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(("before", "after"), itertools.permutations([("zero1", 2), ("zero2", 1), ("fsdp", 4)], 2))
def test_bf16_resumes_on_any_zero_ranks(tmp_path: Path, before: tuple, after: tuple) -> None:
    uninterrupted = run_ranks(write, before[1], str(tmp_path), before[0], "bf16")[0]
    resumed = run_ranks(resume, after[1], str(tmp_path), after[0], "bf16")[0]
    torch.testing.assert_close(resumed["losses"], uninterrupted["losses"], rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("plugin", ["ddp", "zero2", "fsdp"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ema_equals_average_of_whole_weights(plugin: str, ranks: int) -> None:
    run_ranks(average_by_hand, ranks, plugin)
