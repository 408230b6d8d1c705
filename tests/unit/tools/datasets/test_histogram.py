"""Histograms counted by DuckDB."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tools.datasets.database import Database
from tools.datasets.histogram import Bars, Histogram, axis, bars, histogram, quantiles

pytest.importorskip("duckdb")


def histogram_of(folder: Path, values: list[Any]) -> Histogram | None:
    pyarrow.parquet.write_table(pyarrow.table({"x": values}), folder / "a.parquet")
    with Database() as database:
        return histogram(database, database.open(str(folder / "a.parquet")), "x", "x", "pixels")


def test_every_value_is_counted_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(5, 1, 5000)
    drawing = histogram_of(tmp_path, [*values, None, float("nan"), float("inf"), 1e9])
    assert drawing is not None
    assert (drawing.values, drawing.empty) == (5001, 3)
    assert sum(drawing.counts) + drawing.below + drawing.above == 5001
    assert (drawing.below, drawing.above) == (0, 1)
    assert drawing.highest == 1e9
    assert drawing.median == pytest.approx(5, abs=0.05)
    expected, _ = np.histogram(values, drawing.edges)
    assert drawing.counts == list(expected)


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [
        ([3, 3, 5], [2.5, 3.5, 4.5, 5.5], [2, 0, 1]),
        ([2.5], [2.0, 3.0], [1]),
        ([7, 7], [6.5, 7.5], [2]),
        ([0.0, 1.0], None, None),
    ],
)
def test_small_tables(tmp_path: Path, values: list[Any], edges: list[float] | None, counts: list[int] | None) -> None:
    drawing = histogram_of(tmp_path, values)
    assert drawing is not None
    assert sum(drawing.counts) == len(values)
    if edges is not None:
        assert (drawing.edges, drawing.counts) == (edges, counts)
    assert histogram_of(tmp_path, [None, float("nan")]) is None


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (-3.2, 7.9), (1e-9, 3e-9), (5.0, 1e12), (0.1, 0.10001)])
def test_axis_is_round_and_holds_its_ends(start: float, stop: float) -> None:
    edges = axis(start, stop, False)
    assert edges[0] <= start <= stop <= edges[-1] * (1 + 1e-9)
    assert 8 <= len(edges) - 1 <= 42
    assert np.allclose(np.diff(edges), edges[1] - edges[0], rtol=1e-3)


def test_bars_and_quantiles(tmp_path: Path) -> None:
    kinds = ["pan"] * 5 + ["zoom"] * 3 + ["$static"] * 2 + [None]
    table = pyarrow.table({"kind": kinds, "x": [float(n) for n in range(11)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with Database() as database:
        source = database.open(str(tmp_path / "a.parquet"))
        assert bars(database, source, "kind", "kind", 2) == Bars("kind", ["pan", "zoom"], [5, 3], 1, 2)
        assert quantiles(database, source, "x", 5) == [0, 2, 4, 6, 8, 10]
