"""The page of tools.browse: clips side by side, one of them playing, its cells, marks and caption."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opensora.datasets.decode import IMAGE_SUFFIXES
from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip
from opensora.web.serve import literal_html, sentences
from tools.browse.clip_preview import ClipPreview
from tools.browse.marked_manifest import Mark, MarkedManifest

if TYPE_CHECKING:
    import gradio
    import numpy as np

KEYS = (
    "Keys: j and k or the arrows for the next and the previous clip, page up and down, g good, b bad, u no mark, e caption, "
    "f filter, Escape leaves a field, space plays, Ctrl+S saves"
)
_TABLE_ORDER = "order of the table"
_SHORT_CELL, _LONGEST_CELL = 16, 300  # characters: side by side with others up to here, cut off from here on


@dataclass(frozen=True)
class View:
    """The rows that one visitor looks at in their order, and the place of the current one."""

    rows: "np.ndarray"
    place: int = 0

    @property
    def row(self) -> int | None:
        """None where no row fits the filter."""
        return int(self.rows[self.place]) if len(self.rows) else None

    def at(self, row: int | None) -> "View":
        """The same rows with another current one; a row that is not among them leaves the place as it is."""
        if row is None or not (self.rows == row).any():
            return self
        return View(self.rows, int((self.rows == row).argmax()))

    def moved(self, steps: int) -> "View":
        return View(self.rows, max(0, min(len(self.rows) - 1, self.place + steps)))

    def page(self, size: int) -> list[int]:
        """Numbers of the rows that are shown together with the current one."""
        first = self.place // size * size
        return [int(row) for row in self.rows[first : first + size]]


def build_page(manifest: MarkedManifest, preview: ClipPreview, page_size: int) -> "gradio.Blocks":
    """The page. page_size: clips that are shown side by side."""
    import gradio

    def show(view: View, message: str = "") -> tuple[Any, ...]:
        """Values of `shown`, for a view."""
        row = view.row
        cells = manifest.row(row) if row is not None else {}
        text = cells.get("text")
        return (
            view,
            -1 if row is None else row,
            literal_html(_summary(manifest, view)),
            literal_html(_clips([(number, manifest.row(number)) for number in view.page(page_size)], row)),
            literal_html(_player(row, cells, preview)),
            "" if is_missing(text) else str(text),
            literal_html(_cells({**cells, "path": _below(str(cells["path"]), manifest.folder)} if cells else {})),
            message,
        )

    def keep(row: int, caption: str) -> str:
        """Keep the caption in the field, which belongs to `row`; returns what to say of it."""
        is_changed = row >= 0 and manifest.correct(row, caption)
        return f"row {row}: caption changed, not saved yet" if is_changed else ""

    def choose(row: int, caption: str, expression: str, sort: str, descending: bool) -> tuple[Any, ...]:
        message = keep(int(row), caption)
        rows = manifest.select(expression, "" if sort == _TABLE_ORDER else sort, descending)
        return show(View(rows).at(int(row)), message)

    def go(view: View, row: int, caption: str, steps: int) -> tuple[Any, ...]:
        message = keep(int(row), caption)
        return show(view.at(int(row)).moved(steps), message)

    def pick(view: View, row: int, caption: str, event: gradio.EventData) -> tuple[Any, ...]:
        message = keep(int(row), caption)
        return show(view.at(int(event.row)), message)

    def mark(view: View, row: int, caption: str, value: Mark) -> tuple[Any, ...]:
        message = keep(int(row), caption)
        if row < 0:
            return show(view)
        manifest.mark(int(row), value)
        marked = f"row {int(row)}: {value or 'no mark'}"
        return show(view.at(int(row)).moved(1), f"{marked}; {message}" if message else marked)

    def save(view: View, row: int, caption: str) -> tuple[Any, ...]:
        keep(int(row), caption)
        changed = manifest.save()
        return show(
            view.at(int(row)), f"saved {changed} changed rows in {manifest.path}" if changed else "nothing has changed"
        )

    title = os.path.basename(manifest.path)
    with gradio.Blocks(title=f"{title}: clips", analytics_enabled=False, fill_width=True) as blocks:
        view = gradio.State(View(manifest.select()))
        row = gradio.Number(-1, visible="hidden", precision=0)
        with gradio.Row():
            expression = gradio.Textbox(
                label="Filter: a DuckDB expression",
                placeholder="aes >= 5 AND mark IS NULL, or text LIKE '%dog%'",
                elem_id="filter",
                scale=5,
            )
            sort = gradio.Dropdown([_TABLE_ORDER, *manifest.columns], value=_TABLE_ORDER, label="Sort", elem_id="sort")
            descending = gradio.Checkbox(label="Highest first", elem_id="descending", min_width=80)
        with gradio.Row():
            with gradio.Column(scale=5):
                summary = _html("summary")
                message = gradio.Textbox(
                    label="Message", show_label=False, interactive=False, elem_id="message", container=False
                )
            save_button = gradio.Button("Save into the manifest", elem_id="save", variant="primary", scale=1)
        with gradio.Row():
            with gradio.Column(scale=3):
                clips = _html("clips", js_on_load=_PICK)
                with gradio.Row():
                    earlier = gradio.Button("Earlier clips", elem_id="earlier", size="sm")
                    later = gradio.Button("Later clips", elem_id="later", size="sm")
            with gradio.Column(scale=4):
                player = _html("player")
                with gradio.Row():
                    previous = gradio.Button("Previous", elem_id="previous", size="sm", min_width=60)
                    good = gradio.Button("Good", elem_id="good", size="sm", min_width=60)
                    bad = gradio.Button("Bad", elem_id="bad", size="sm", min_width=60)
                    unmark = gradio.Button("No mark", elem_id="unmark", size="sm", min_width=60)
                    following = gradio.Button("Next", elem_id="next", size="sm", min_width=60)
                caption = gradio.Textbox(label="Caption", lines=3, max_lines=12, elem_id="caption")
                cells = _html("cells")
        gradio.HTML(f'<p class="keys">{html.escape(KEYS)}</p>')

        shown = [view, row, summary, clips, player, caption, cells, message]
        chosen = [row, caption, expression, sort, descending]
        here = [view, row, caption]
        gradio.on(
            [blocks.load, expression.submit, sort.input, descending.input],
            sentences(choose),
            chosen,
            shown,
            show_progress="hidden",
        )

        def on_click(button: gradio.Button, work: Any, *values: Any) -> None:
            def called(view: View, row: int, caption: str) -> tuple[Any, ...]:
                return work(view, row, caption, *values)

            button.click(sentences(called), here, shown, show_progress="hidden")

        for button, steps in ((previous, -1), (following, 1), (earlier, -page_size), (later, page_size)):
            on_click(button, go, steps)
        for button, value in ((good, "good"), (bad, "bad"), (unmark, "")):
            on_click(button, mark, value)
        on_click(save_button, save)
        clips.select(sentences(pick), here, shown, show_progress="hidden")
        caption.blur(
            sentences(lambda row, caption: keep(int(row), caption)), [row, caption], message, show_progress="hidden"
        )
    return blocks


_PICK = """element.addEventListener("click", (event) => {
  const clip = event.target.closest("button[data-row]");
  if (clip) trigger("select", {row: Number(clip.dataset.row)});
});"""


def _html(elem_id: str, js_on_load: str | None = None) -> "gradio.HTML":
    import gradio

    return gradio.HTML(elem_id=elem_id, js_on_load=js_on_load)


def _summary(manifest: MarkedManifest, view: View) -> str:
    where = f"clip {view.place + 1:,} of {len(view.rows):,}" if len(view.rows) else "no clip fits the filter"
    parts = [f"{html.escape(manifest.path)}: {manifest.rows:,} clips", where]
    changed = manifest.changed
    parts += [f"{changed:,} changed and not saved"] if changed else []
    return f"<p>{'; '.join(parts)}</p>"


def _below(path: str, folder: str) -> str:
    """A path below the folder, relative to it; any other as it is."""
    return os.path.relpath(path, folder) if path.startswith(os.path.join(folder, "")) else path


def _mark(mark: object) -> str:
    return f'<b class="{mark}">{mark}</b>' if mark in ("good", "bad") else ""


def _clips(rows: Sequence[tuple[int, dict[str, Any]]], current: int | None) -> str:
    buttons = []
    for number, row in rows:
        text = "" if is_missing(row.get("text")) else " ".join(str(row["text"]).split())
        name = html.escape(os.path.basename(str(row["path"])))
        words = html.escape(text[:80]) or "<i>no caption</i>"
        buttons.append(
            f'<button type="button" data-row="{number}" aria-current="{str(number == current).lower()}" title="{name}">'
            f'<img src="/thumbnail/{number}" alt="{name}"><span>{number} {_mark(row.get("mark"))}</span>'
            f"<span>{words}</span></button>"
        )
    return f'<div class="clips">{"".join(buttons)}</div>'


def _player(row: int | None, cells: dict[str, Any], preview: ClipPreview) -> str:
    if row is None:
        return '<div class="player"></div>'
    path = str(cells["path"])
    if path.lower().endswith(IMAGE_SUFFIXES):
        return f'<div class="player"><img src="/picture/{row}" alt="{html.escape(path)}"></div>'
    try:
        note = preview.note(cells)
    except BadClip as error:
        return f'<div class="player"><p class="error">{html.escape(str(error))}</p></div>'
    return (
        f'<div class="player"><video src="/clip/{row}" controls loop muted autoplay playsinline></video>'
        f'<p class="error"></p>{f"<p>{html.escape(note)}</p>" if note else ""}</div>'
    )


def _cells(cells: dict[str, Any]) -> str:
    lines = []
    for column, value in cells.items():
        if column == "text" or value is None:
            continue
        words = f"{value:.5g}" if isinstance(value, float) else str(value)
        shown = _mark(value) if column == "mark" else ""
        cut_off = words if len(words) <= _LONGEST_CELL else words[: _LONGEST_CELL - 1] + "…"
        long = ' class="long"' if len(words) > _SHORT_CELL else ""
        lines.append(f"<div{long}><dt>{html.escape(column)}</dt><dd>{shown or html.escape(cut_off)}</dd></div>")
    return f'<dl class="cells">{"".join(lines)}</dl>'
