"""How many ranks `opensora check` plans for."""

from types import SimpleNamespace
from typing import Any

import pytest

from opensora.cli.check import check_command
from opensora.datasets.report import Report
from opensora.errors import ConfigError
from opensora.training import plan as planning
from tests.e2e.processes import ROOT, TRAIN

CONFIG = str(ROOT / TRAIN)


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of ranks of each plan that was made; the plan itself is a stand-in."""
    asked: list[int] = []

    def plan(run: Any, world: int) -> Any:
        asked.append(world)
        return SimpleNamespace(
            report=Report("here", 1, 1), model="M", parameters=1, frozen_parameters=0, latent_size=(1, 2, 3),
            tokens_per_sample=6, samples_per_step=run.batch_size * run.micro_batches, memory={"weights": 4}, memory_total=4,
        )  # fmt: skip

    monkeypatch.setattr(planning, "plan", plan)
    return asked


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 1),
        (["world=2"], 2),
        (["seed=3", "world=2"], 2),
        (["world=1", "world=2"], 2),
        (["world=4", "micro_batches=8"], 4),
    ],
)
def test_world_is_taken_out_of_the_overrides(worlds: list[int], overrides: list[str], expected: int) -> None:
    assert check_command(CONFIG, overrides) == 0
    assert worlds == [expected]


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.0", "true", "none"])
def test_worlds_that_cannot_be(worlds: list[int], value: str) -> None:
    with pytest.raises(ConfigError, match=r"command line: key 'world': found .*; allowed: a whole number from 1"):
        check_command(CONFIG, [f"world={value}"])
    assert worlds == []


def test_ranks_that_cannot_share_the_micro_batches(worlds: list[int]) -> None:
    with pytest.raises(ConfigError, match="key 'micro_batches': found 2 for 3 data ranks"):
        check_command(CONFIG, ["world=3"])
    assert worlds == []


def test_values_that_only_the_scheduler_can_judge_are_judged(worlds: list[int]) -> None:
    with pytest.raises(ConfigError):
        check_command(CONFIG, ["scheduler.num_sampling_steps=0"])
    assert worlds == []
