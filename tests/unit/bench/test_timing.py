"""Rounds of an action and matrix products, with a fake clock."""

from typing import Any

import pytest
import torch

from bench.timing import measure
from opensora.platforms import select


def test_action_alternates_with_equal_flops_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The median round counts; the minimum and the maximum are kept."""
    products = [0]
    matmul = torch.Tensor.__matmul__
    seconds = iter([2.0, 1.0, 1.0, 2.0, 1.0, 1.0])  # products and action by turns

    def counting_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        products[0] += 1
        return matmul(a, b)

    def fake_seconds(action: Any, platform: Any) -> float:
        action()
        return next(seconds)

    monkeypatch.setattr(torch.Tensor, "__matmul__", counting_matmul)
    monkeypatch.setattr("bench.timing.seconds_of", fake_seconds)
    runs: list[int] = []
    timing = measure(lambda: runs.append(1), 7 * 2 * 2 * 3 * 4, select("cpu"), torch.float32, (2, 3, 4), repeats=3)
    assert products[0] == 3 * 7
    assert len(runs) == 1 + 3
    assert timing.seconds == 1.0
    assert timing.matmul_flops_per_second == 7 * 48
    assert timing.shares == (0.5, 1.0, 2.0)
