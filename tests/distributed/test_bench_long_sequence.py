"""`opensora bench tokens` at small sizes."""

from typing import Any

import pytest

from bench import long_sequence
from bench.long_sequence import CASES, Case, formula, step_on_rank
from bench.peak_memory import return_freed_memory
from opensora.parallel import collectives, world
from opensora.platforms import select
from tests.dist import Pool


def a_step(case: Case) -> dict[str, Any]:
    here = world.split_sequence_groups(collectives.world_size())
    return_freed_memory()
    step_on_rank(Case(4, 8, 8), select("cpu"), here)  # allocations that only the first step makes
    return step_on_rank(case, select("cpu"), here)


@pytest.fixture(scope="module")
def steps() -> dict[int, list[dict[str, Any]]]:
    """Number of ranks -> results, measured in new processes."""
    pool = Pool()
    try:
        return {ranks: pool.run(a_step, ranks, (Case(64, 32, 32),), 120) for ranks in (1, 2)}
    finally:
        pool.close()


def test_ranks_share_the_step(steps: dict[int, list[dict[str, Any]]]) -> None:
    (alone,) = steps[1]
    assert alone["sent_bytes"] == alone["formula_bytes"] == 0
    for rank in steps[2]:
        assert rank["sent_bytes"] == rank["formula_bytes"] == formula(Case(64, 32, 32), 2) > 0
        assert rank["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert rank["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)


def test_two_ranks_halve_activation_memory(steps: dict[int, list[dict[str, Any]]]) -> None:
    (alone,) = steps[1]
    assert alone["activation_bytes"] > 50 * 2**20
    assert max(rank["activation_bytes"] for rank in steps[2]) < 0.6 * alone["activation_bytes"]


def test_full_case_has_a_million_tokens_and_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CASES["full"].tokens == 1_048_576
    figures = {"seconds": 2.0, "peak_bytes": 2**30, "parameters": 7, "formula_bytes": 3 * 2**20, "loss": 1.0}

    def measured(name: str, ranks: int) -> dict[str, Any]:
        return figures | {"activation_bytes": 2**30 / ranks, "sent_bytes": ranks * 2**20, "grad_norm": 1.0 + ranks}

    monkeypatch.setattr(long_sequence, "measured", measured)
    results = long_sequence.run(select("cpu"), quick=False)
    assert results["memory_ratio"] == 0.5
    assert results["grad_norm_difference"] == 0.5
    _, shape, table, agreement = long_sequence.tables(results)
    assert "1,048,576 tokens (1,024 frames of 1,024 patches)" in str(shape)
    columns = [list(column.cells) for column in table.columns]  # type: ignore[union-attr]
    assert columns[0] == ["1", "2"]
    assert columns[4:] == [["1,024", "512"], ["1.00", "0.50"], ["1.0", "2.0"], ["3.0", "3.0"]]
    assert "loss differs by 0.0e+00" in str(agreement)
