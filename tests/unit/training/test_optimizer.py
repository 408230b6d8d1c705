"""Schedules are functions of the step."""

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch

from opensora.parallel import world
from opensora.parallel.engine import EngineOptions
from opensora.registry import LR_SCHEDULERS, OPTIMIZERS, PLUGINS, build
from opensora.training.optimizer import parameter_groups
from tests.dist import one_rank


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


def test_groups_go_by_parts_of_names() -> None:
    """The first part that is in a name counts, and weights without one come first, at the optimizer's own rate."""
    names = ["time.time_conv", "conv", "norm", "time.scale"]
    named = [(name, torch.nn.Parameter(torch.zeros(1))) for name in names]
    name_of = {id(parameter): name for name, parameter in named}
    params = [parameter for name, parameter in named if name != "norm"]  # which is frozen
    groups = parameter_groups(named, params, {"scale": 3.0, "time": 2.0, "norm": 1.0})
    got = [([name_of[id(each)] for each in group["params"]], group.get("lr")) for group in groups]
    assert got == [(["conv"], None), (["time.scale"], 3.0), (["time.time_conv"], 2.0)]


@pytest.mark.parametrize("plugin", ["ddp", "zero1", "zero2", "fsdp"])
def test_every_group_has_its_learning_rate(plugin: str) -> None:
    """Adam's first step is the learning rate, whatever the gradient: 0.1 or 0.4, times a schedule's factor of 0.5."""
    layers = {name: torch.nn.Linear(2, 2, bias=False) for name in ("time", "rest")}
    model = torch.nn.Sequential(OrderedDict(layers))
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)

    def make_optimizer(params: Any) -> torch.optim.Optimizer:
        groups = parameter_groups(model.named_parameters(), params, {"time": 0.4})
        return build(OPTIMIZERS, {"type": "AdamW", "lr": 0.1}, params=groups)

    with one_rank():
        engine = build(PLUGINS, {"type": plugin}).apply(
            model, EngineOptions(make_optimizer, "fp32", 0.0, world.current())
        )
        with engine.accumulating(last=True):
            engine.backward(engine.model(torch.ones(1, 2)).sum())
        engine.grad_norm()
        engine.update(0.5)
        weights = engine.gather_state_dict()
    torch.testing.assert_close(weights["rest.weight"], torch.full((2, 2), 1 - 0.05))
    torch.testing.assert_close(weights["time.weight"], torch.full((2, 2), 1 - 0.2))
