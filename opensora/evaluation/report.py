"""The HTML page of an evaluation: one file, pictures inside, nothing loaded from elsewhere."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import torch

from opensora.evaluation.contact_sheet import strip
from opensora.evaluation.evaluate import Evaluated
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Curve, Figure
from opensora.schema import EvaluateRun

if TYPE_CHECKING:
    from PIL import Image

FRAMES, HEIGHT = 6, 72  # of each video on the page: frames, pixels of each
MOST_VIDEOS = 200  # with pictures; figures are of all
ARROWS = {"higher": "↑ higher is better", "lower": "↓ lower is better", "neither": ""}

STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --faint: #6b6b6b; --line: #e2e2e2; --good: #1a7f37; --bad: #b42318; }
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; color: var(--ink); }
body { max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.faint { color: var(--faint); font-size: .87em; } .good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; } img { display: block; image-rendering: pixelated; max-width: 100%; }
button.sort { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer; color: inherit; }
button.sort:hover, button.sort:focus { text-decoration: underline; }
figure { margin: 1rem 0; }
"""

# Sorts the rows of the table of videos by a column; rows keep their pictures.
SCRIPT = """
document.querySelectorAll("button.sort").forEach(button => button.addEventListener("click", () => {
  const body = document.querySelector("#videos tbody"), column = button.dataset.column;
  const sign = button.dataset.sign = button.dataset.sign === "1" ? "-1" : "1";
  const value = row => Number(row.dataset[column]);
  [...body.rows].sort((a, b) => sign * (value(a) - value(b))).forEach(row => body.append(row));
}));
"""


def report_page(run: EvaluateRun, evaluated: Sequence[Evaluated]) -> str:
    """The whole page."""
    first = evaluated[0]
    title = "Evaluation" + (f" of {first.folder}" if first.folder else "")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>",
        *_summary(run, evaluated),
        *_figures(evaluated),
        *_curves(evaluated),
        *_extremes(first),
        *_videos(evaluated),
        f"<h2>Settings</h2><pre class='wide'>{escape(json.dumps(_settings(run), indent=2, default=list))}</pre>",
        f"<script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _settings(run: EvaluateRun) -> dict[str, object]:
    return {key: value for key, value in vars(run).items() if value is not None}


def _summary(run: EvaluateRun, evaluated: Sequence[Evaluated]) -> Iterator[str]:
    for each in evaluated:
        if each.videos:
            sizes = {f"{video.num_frames} frames of {video.width}x{video.height}" for video in each.videos}
            named = sorted(sizes)[0] + (f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else "")
            yield f"<p>{escape(each.folder)}: {len(each.videos)} videos, {named}</p>"
    if run.references is not None:
        yield f"<p class='faint'>references: {escape(run.references)}</p>"


def _figures(evaluated: Sequence[Evaluated]) -> Iterator[str]:
    several = len(evaluated) > 1
    heads = [escape(each.folder) for each in evaluated] if several else ["value"]
    cells = "".join(f"<th class='number'>{head}</th>" for head in [*heads, *(["difference"] if several else [])])
    yield f"<h2>Figures</h2><div class='wide'><table><thead><tr><th>figure</th>{cells}<th>unit</th><th></th></tr></thead><tbody>"
    columns = [dict(each.figures()) for each in evaluated]
    for name, figure in columns[0].items():
        values = [column[name].value if name in column else None for column in columns]
        numbers = "".join(f"<td class='number'>{'' if value is None else number(value)}</td>" for value in values)
        if several:
            numbers += _difference(figure, values)
        note = f"<div class='faint'>{escape(figure.note)}</div>" if figure.note else ""
        yield (
            f"<tr><td>{escape(name)}{note}</td>{numbers}<td>{escape(figure.unit)}</td>"
            f"<td class='faint'>{ARROWS[figure.better]}</td></tr>"
        )
    yield "</tbody></table></div>"


def _difference(figure: Figure, values: Sequence[float | None]) -> str:
    """The second value less the first, in the color of better or worse."""
    before, after = values
    if before is None or after is None:
        return "<td></td>"
    change = after - before
    better = {"higher": change > 0, "lower": change < 0}.get(figure.better)
    color = "" if better is None or change == 0 else ("good" if better else "bad")
    return f"<td class='number {color}'>{'+' if change > 0 else ''}{number(change)}</td>"


def number(value: float) -> str:
    """Four digits, without an exponent where that is short."""
    return f"{value:.4g}"


def _curves(evaluated: Sequence[Evaluated]) -> Iterator[str]:
    curves = [(each, *named) for each in evaluated for named in each.curves()]
    if curves:
        yield "<h2>Curves</h2>"
    for each, own_name, curve in curves:
        name = own_name if len(evaluated) == 1 else f"{own_name}, {each.folder}"
        yield f"<figure><img alt='{escape(name, quote=True)}' style='image-rendering:auto' src='{plot(curve, name)}'></figure>"


def plot(curve: Curve, title: str) -> str:
    """The lines of a curve as a png in a data address."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for name, values in curve.lines.items():
        axes.plot(curve.x, values, "o-", markersize=4, label=name)
    axes.set(xlabel=curve.x_label, ylabel=curve.y_label, title=title)
    axes.grid(True, alpha=0.25)
    if len(curve.lines) > 1:
        axes.legend()
    file = io.BytesIO()
    canvas.savefig(file, format="png")
    return _address(file.getvalue())


def _address(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _extremes(each: Evaluated) -> Iterator[str]:
    """The best and the worst video by each figure that has a direction."""
    rows = [
        (name, figure)
        for name, figure in each.figures()
        if figure.better != "neither" and len(set(figure.per_video)) > 1
    ]
    if not rows:
        return
    yield "<h2>Best and worst</h2><div class='wide'><table>"
    yield "<thead><tr><th>figure</th><th>best</th><th>worst</th></tr></thead><tbody>"
    for name, figure in rows:
        order = np.argsort(figure.per_video)
        best, worst = (order[-1], order[0]) if figure.better == "higher" else (order[0], order[-1])
        cells = "".join(
            f"<td>{_picture(each.videos[place], 4)}{_words(each.videos[place])}"
            f"<div class='faint'>{number(figure.per_video[place])} {escape(figure.unit)}</div></td>"
            for place in (best, worst)
        )
        yield f"<tr><td>{escape(name)}</td>{cells}</tr>"
    yield "</tbody></table></div>"


def _videos(evaluated: Sequence[Evaluated]) -> Iterator[str]:
    first = evaluated[0]
    if not first.videos:
        return
    named = [(name, figure) for name, figure in first.figures() if figure.per_video]
    other = partners(first.videos, evaluated[1].videos) if len(evaluated) > 1 else None
    heads = "".join(
        f"<th class='number'><button class='sort' data-column='c{column}'>{escape(name)}</button></th>"
        for column, (name, _) in enumerate(named)
    )
    second_head = "" if other is None else f"<th>{escape(evaluated[1].folder)}</th>"
    shown = min(len(first.videos), MOST_VIDEOS)
    rest = f", the first {shown} of {len(first.videos)}" if shown < len(first.videos) else ""
    yield f"<h2>Videos{rest}</h2><div class='wide'><table id='videos'>"
    yield f"<thead><tr><th>{escape(first.folder)}</th>{second_head}{heads}</tr></thead><tbody>"
    for place, video in enumerate(first.videos[:shown]):
        keys = "".join(f" data-c{column}='{figure.per_video[place]!r}'" for column, (_, figure) in enumerate(named))
        cells = "".join(f"<td class='number'>{number(figure.per_video[place])}</td>" for _, figure in named)
        second = ""
        if other is not None:
            partner = other[place]
            second = f"<td>{'no video of this prompt and seed' if partner is None else _picture(partner)}</td>"
        yield f"<tr{keys}><td>{_picture(video)}{_words(video)}</td>{second}{cells}</tr>"
    yield "</tbody></table></div>"


def partners(videos: Sequence[EvaluatedVideo], others: Sequence[EvaluatedVideo]) -> list[EvaluatedVideo | None]:
    """For each video that of the same prompt, seed and number among those of its prompt; without a json, of the same name."""

    def identity(video: EvaluatedVideo) -> tuple[object, ...]:
        if video.prompt is None or "seed" not in video.settings:
            return (video.path.name,)
        return (video.prompt, video.settings["seed"], video.settings.get("repeat"))

    by_identity = {identity(other): other for other in others}
    return [by_identity.get(identity(video)) for video in videos]


def _words(video: EvaluatedVideo) -> str:
    prompt = f"<div>{escape(video.prompt)}</div>" if video.prompt else ""
    return f"{prompt}<div class='faint'>{escape(video.name)}</div>"


def _picture(video: EvaluatedVideo, frames: int = FRAMES) -> str:
    """Frames of a video side by side, as an img."""
    picked = np.unique(np.linspace(0, video.num_frames - 1, frames).round().astype(int)).tolist()
    clip_CTHW = torch.from_numpy(video.read(picked)).permute(3, 0, 1, 2).float() / 127.5 - 1
    picture: Image.Image = strip(clip_CTHW, frames, HEIGHT)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    name = escape(video.prompt or video.name, quote=True)
    return f"<img alt='{name}' width='{picture.width}' height='{picture.height}' src='{_address(file.getvalue())}'>"
