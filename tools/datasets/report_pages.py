"""The pictures of a report: pages of histograms, and example frames by tenths of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensora.datasets.decode import Frames
from tools.datasets.histogram import Bars, Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3  # charts side by side
_BLUE, _GRAY, _RED = "#3b6ea5", "#8a8a8a", "#b03a2e"
_FRAME = (160, 90)  # pixels of an example: width, height


@dataclass(frozen=True)
class Example:
    """A row with one of its frames. frame: [H, W, 3], None where it cannot be read, with the reason in `error`."""

    title: str
    text: str
    value: float
    frame: Frames | None
    error: str = ""


@dataclass(frozen=True)
class Tenth:
    """Rows from one value of a column to another."""

    low: float
    high: float
    examples: list[Example]


def draw_charts(drawings: Sequence[Histogram | Bars], path: Path) -> None:
    """Write one page of charts as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(drawings) // _COLUMNS)
    columns = min(_COLUMNS, len(drawings))
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, drawing in enumerate(drawings):
        axes = figure.add_subplot(rows, columns, number + 1)
        if isinstance(drawing, Histogram):
            _histogram(axes, drawing)
        else:
            _bars(axes, drawing)
    figure.savefig(path, format="png", dpi=100)


def _histogram(axes: "Axes", drawing: Histogram) -> None:
    width = drawing.edges[1] - drawing.edges[0]
    axes.bar(drawing.edges[:-1], drawing.counts, width=width * 0.94, align="edge", color=_BLUE)
    if drawing.edges[0] <= drawing.median <= drawing.edges[-1]:
        axes.axvline(drawing.median, color=_RED, linewidth=1)
    notes = [f"median {drawing.median:.4g}", f"{drawing.lowest:.4g} to {drawing.highest:.4g}"]
    notes += [f"{drawing.empty:,} empty"] if drawing.empty else []
    notes += [f"{drawing.below + drawing.above:,} beyond the axis"] if drawing.below + drawing.above else []
    _label(axes, drawing.title, ", ".join(notes), drawing.unit)


def _bars(axes: "Axes", drawing: Bars) -> None:
    labels = [_cut_off(label, 18) for label in drawing.labels]
    places = range(len(labels))
    axes.barh(places, drawing.counts, color=_BLUE)
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    notes = [f"{drawing.empty:,} empty"] if drawing.empty else []
    notes += [f"{drawing.others:,} of other values"] if drawing.others else []
    _label(axes, drawing.title, ", ".join(notes), "rows")


def _label(axes: "Axes", title: str, notes: str, unit: str) -> None:
    axes.set_title(f"{_plain(title)}\n", fontsize=10, fontweight="bold")
    axes.text(0.5, 1.02, notes, transform=axes.transAxes, ha="center", fontsize=7.5, color=_GRAY)
    axes.set_xlabel(_plain(unit), fontsize=8, color=_GRAY)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # which begins a formula


def _cut_off(text: str, length: int) -> str:
    words = _plain(" ".join(text.split()))
    return words if len(words) <= length else words[: length - 1] + "…"


def draw_tenths(tenths: Sequence[Tenth], column: str, path: Path) -> None:
    """Write a page of one line of frames per tenth as PNG, the lowest values first."""
    from PIL import Image, ImageDraw

    from tools.datasets.contact_sheet import _font, _shorten

    wide, high, gap, line, margin = *_FRAME, 8, 14, 150
    most = max(len(tenth.examples) for tenth in tenths)
    step = high + 2 * line + gap
    page = Image.new("RGB", (margin + most * (wide + gap) + gap, gap + len(tenths) * step), (255, 255, 255))
    draw, small, bold = ImageDraw.Draw(page), _font(10), _font(11, bold=True)
    for row, tenth in enumerate(tenths):
        top = gap + row * step
        lines: list[tuple[str, Any]] = [(f"tenth {row + 1}", bold), (column, small)]
        lines.append((f"{tenth.low:.4g} to {tenth.high:.4g}", small))
        for number, (words, font) in enumerate(lines):
            draw.text(
                (gap, top + number * (line + 2)), _shorten(words, draw, font, margin - 2 * gap), (34, 34, 34), font
            )
        for place, example in enumerate(tenth.examples):
            left = margin + place * (wide + gap)
            if example.frame is None:
                draw.rectangle((left, top, left + wide - 1, top + high - 1), outline=(176, 58, 46))
                draw.text((left + 4, top + 4), "cannot be read", (176, 58, 46), small)
            else:
                image = Image.fromarray(example.frame)
                image.thumbnail((wide, high))
                page.paste(image, (left + (wide - image.width) // 2, top + (high - image.height) // 2))
            words = f"{example.value:.4g}  {example.title}"
            draw.text((left, top + high + 1), _shorten(words, draw, small, wide), (34, 34, 34), small)
            draw.text(
                (left, top + high + line),
                _shorten(" ".join(example.text.split()), draw, small, wide),
                (120, 120, 120),
                small,
            )
    page.save(path, format="PNG")
