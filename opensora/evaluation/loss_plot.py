"""The training curve as a picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTH = 0.03  # the smoothed line averages over this share of the logged steps
MANY_DECADES = 4  # of the loss, from which on only powers of ten are written at its axis


def plot_loss(records: Sequence[Mapping[str, Any]], path: str | Path, *, title: str = "training loss") -> Path:
    """Draw `loss_figure` to `path` as png."""
    figure = loss_figure(records, title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(str(path), format="png")
    return path


def loss_figure(records: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    """The records of a metrics.jsonl as a picture: loss per logged step, its average, validation loss.

    A record holds `step` and `loss`, or `step` and `validation`; of two records of one step the later one counts.
    Raises ValueError when no record holds a finite loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    loss = _series((record["step"], record["loss"]) for record in records if "loss" in record)
    validation = _series(
        (record["step"], record["validation"]["loss"])
        for record in records
        if "loss" in (record.get("validation") or {})
    )
    if not loss:
        raise ValueError("loss curve: no record with a finite loss; train first")
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, values = list(loss), list(loss.values())
    axes.plot(steps, values, color="#9db7d5", linewidth=0.8, label="logged step")
    axes.plot(steps, smooth(values), color="#1f4e8c", linewidth=1.8, label="average")
    if validation:
        axes.plot(list(validation), list(validation.values()), "o-", color="#c2541b", markersize=3, label="validation")
    least, most = min([*values, *validation.values()]), max([*values, *validation.values()])
    if 0 < 10 * least <= most:  # of a shorter range a logarithmic axis has one tick, or none
        decades = math.log10(most / least)
        axes.set_yscale("log")
        # Only 1, 2 and 5 are written, and of many decades only the 1: more labels lie on top of each other.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < MANY_DECADES else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.set(xlabel="optimizer step", ylabel="loss", title=title)
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    return figure


def smooth(values: Sequence[float]) -> list[float]:
    """The mean over a window of SMOOTH of the steps around each, narrower at the ends; same length."""
    half = max(1, round(len(values) * SMOOTH / 2))
    windows = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    return [math.fsum(window) / len(window) for window in windows]


def _series(pairs: Iterable[tuple[int, float]]) -> dict[int, float]:
    return dict(sorted({step: value for step, value in pairs if math.isfinite(value)}.items()))
