"""Histograms of columns, counted by DuckDB: no column is read into memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tools.datasets.database import Database, Source

BINS = 40
_OUTLIER = 3.0  # times the range of nine tenths of the values: what lies beyond would leave one bar for the others


@dataclass(frozen=True)
class Histogram:
    """counts[i]: values from edges[i] to edges[i + 1]. below, above: values beyond the ends of the axis."""

    title: str
    unit: str
    values: int
    empty: int
    lowest: float
    median: float
    highest: float
    edges: list[float]
    counts: list[int]
    below: int = 0
    above: int = 0


@dataclass(frozen=True)
class Bars:
    """Rows of each value of a column of words, the most frequent first. others: rows of values that are not shown."""

    title: str
    labels: list[str]
    counts: list[int]
    empty: int
    others: int


def histogram(database: Database, source: Source, value: str, title: str, unit: str) -> Histogram | None:
    """The histogram of an SQL value of each row; None without any value."""
    cell = f"CAST({value} AS DOUBLE)"
    usable = f"{cell} IS NOT NULL AND isfinite({cell})"
    count, lowest, median, highest, low, high, whole = database.row(
        "SELECT count(*), min(v), median(v), max(v), quantile_disc(v, 0.05), quantile_disc(v, 0.95), bool_and(v = floor(v)) "
        f"FROM (SELECT {cell} AS v FROM {source.view} WHERE {usable})"
    )
    if not count:
        return None
    reach = _OUTLIER * (high - low) or math.inf
    edges = axis(max(lowest, low - reach), min(highest, high + reach), whole)
    first, width = edges[0], edges[1] - edges[0]
    rows = database.rows(
        f"SELECT CAST(floor((v - {first!r}) / {width!r}) AS BIGINT) AS place, count(*) FROM "
        f"(SELECT {cell} AS v FROM {source.view} WHERE {usable}) GROUP BY place"
    )
    bins, counts, below, above = len(edges) - 1, [0] * (len(edges) - 1), 0, 0
    for place, number in rows:
        if place < 0:
            below += number
        elif place < bins or (place == bins and highest == edges[-1]):
            counts[min(place, bins - 1)] += number
        else:
            above += number
    return Histogram(title, unit, count, source.rows - count, lowest, median, highest, edges, counts, below, above)


def axis(start: float, stop: float, whole: bool) -> list[float]:
    """Edges of bins of a round width that hold start and stop; bins of whole numbers are centered on them."""
    if whole and stop - start < BINS:
        return [start - 0.5 + step for step in range(int(stop - start) + 2)]
    if start == stop:
        return [start - 0.5, start + 0.5]
    rough = (stop - start) / BINS
    size = 10.0 ** math.floor(math.log10(rough))
    width = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    width = max(1.0, width) if whole else width
    first = math.floor(start / width) * width
    bins = math.floor((stop - first) / width + 1e-9) + 1
    return [round(first + width * number, 12) for number in range(bins + 1)]


def bars(database: Database, source: Source, value: str, title: str, most: int = 12) -> Bars | None:
    """Rows of each value of a column of words; None without any value."""
    rows = database.rows(
        f"SELECT CAST({value} AS VARCHAR) AS v, count(*) FROM {source.view} WHERE {value} IS NOT NULL "
        f"GROUP BY v ORDER BY 2 DESC, v LIMIT {most}"
    )
    if not rows:
        return None
    [count] = database.row(f"SELECT count({value}) FROM {source.view}")
    counts = [number for _, number in rows]
    return Bars(title, [label for label, _ in rows], counts, source.rows - count, count - sum(counts))


def quantiles(database: Database, source: Source, value: str, parts: int) -> list[float]:
    """The bounds of `parts` runs of rows of equal number, from the lowest value to the highest."""
    places: Sequence[float] = [part / parts for part in range(parts + 1)]
    [bounds] = database.row(f"SELECT quantile_cont(CAST({value} AS DOUBLE), {list(places)}) FROM {source.view}")
    return list(bounds or [])
