"""FLOP counts and ratios of the timed steps; the times themselves are fake."""

from typing import Any

import pytest
import torch

from bench import train_step
from bench.timing import Round, Timing
from bench.train_step import Case
from opensora.platforms import select

TINY = Case(width=32, heads=2, frames=2, rows=8, columns=8, text_tokens=5)


def test_flops_are_those_of_the_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per token: qkv and proj twice, queries and proj to the text, an MLP of 4 D, backward twice as much."""
    monkeypatch.setattr(train_step, "measure", lambda _, flops, *__: Timing([Round(flops, 0.5, 1e9)]))
    row = train_step.training_step(TINY, select("cpu"), torch.float32)
    tokens, width, depth = 32, 32, 2
    products = depth * tokens * (4 + 4 + 2 + 8) * width**2 * 2 * 3
    text = 5 * (
        train_step.TEXT_CHANNELS * width * 2 * 2 + (1 + depth * 2) * width**2 * 2 * 3
    )  # no gradient to captions
    attention = depth * (tokens * (16 + 2) + tokens * 5) * width * 2 * 2 * 3.5  # its backward computes the scores again
    assert row["gflop"] * 1e9 == pytest.approx(products + text + attention, rel=0.05)
    assert row["share"] == pytest.approx(row["gflop"] / 0.5)
    assert row["gflop_per_second"] == pytest.approx(row["gflop"] / 0.5)


def test_cached_text_changes_no_output_and_speedup_is_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_alternate(actions: list[Any], platform: Any) -> list[float]:
        for action in actions:
            assert action().shape == (2, 8, 2, 8, 8)
        return [3.0, 2.0]

    monkeypatch.setattr(train_step, "alternate", fake_alternate)
    row = train_step.sampling_step(TINY, select("cpu"), torch.float32, counted_tokens=3)
    assert row["speedup"] == 1.5
    assert row["largest_difference"] < 1e-5
