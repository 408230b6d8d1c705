"""Schedules are functions of the step."""

import math

import pytest
import torch

from opensora.registry import LR_SCHEDULERS, OPTIMIZERS, build


def schedule(name: str, **arguments):
    return build(LR_SCHEDULERS, {"type": name, **arguments})


def test_warm_up_rises_in_equal_steps_to_one() -> None:
    factor = schedule("constant", steps=100, warmup_steps=4)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule("constant", steps=5, warmup_steps=0)(0) == 1.0


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_decay_reaches_its_end_at_the_last_step(name: str) -> None:
    factor = schedule(name, steps=101, warmup_steps=0, end_factor=0.1)
    assert factor(0) == 1.0
    assert factor(50) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)
    assert all(factor(step) >= factor(step + 1) for step in range(100))


def test_cosine_is_a_cosine() -> None:
    assert schedule("cosine", steps=101, warmup_steps=0)(25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_adamw_takes_open_soras_words() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = build(OPTIMIZERS, {"type": "AdamW", "lr": 0.1, "weight_decay": 0.01, "eps": 1e-15}, params=[weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    # decoupled decay, then a first step of lr: 1 * (1 - 0.1 * 0.01) - 0.1
    assert weight.tolist() == pytest.approx([0.899, 0.899])
