"""Work between training steps leaves no trace, whether it ends well or not."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from opensora.platforms.cpu import CpuPlatform
from opensora.training.isolation import evaluation_mode

CPU = torch.device("cpu")


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_random_numbers_are_as_before(fails: bool) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    model.train()
    model[1][0].eval()  # a part that is meant to evaluate in training
    before = [module.training for module in model.modules()]
    seed()
    expected = draws()
    seed()
    try:
        with evaluation_mode(model, CPU):
            assert not any(module.training for module in model.modules())
            draws()
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert draws() == expected
    assert [module.training for module in model.modules()] == before == [True, True, True, False, True]


def test_memory_is_freed_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(CpuPlatform, "release_memory", lambda self: events.append("release"))
    monkeypatch.setattr("gc.collect", lambda: events.append("collect"))
    with evaluation_mode(nn.Linear(1, 1), CPU):
        events.append("work")
    assert events == ["collect", "release", "work", "collect", "release"]
