"""A report of a table: histograms of its scores, lengths, sizes and captions, and example frames by a score.

Run: python -m tools.datasets.analyze scored.parquet report/
     python -m tools.datasets.analyze scored.parquet report/ --by aes --examples 6

Writes report/index.html and its pictures. --by: the column for which frames of each tenth of the rows are shown, from the
lowest to the highest; by default the first score that the table has.
"""

import argparse
import html
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from opensora import files
from opensora.datasets.missing_values import is_missing
from opensora.errors import ConfigError, DataError
from tools.datasets.contact_sheet import read_shot
from tools.datasets.database import ROW, Database, Source
from tools.datasets.draw import draw
from tools.datasets.histogram import Bars, Histogram, bars, histogram, quantiles
from tools.datasets.info import describe, is_number
from tools.datasets.moved_path import name
from tools.datasets.report_pages import Example, Tenth, draw_charts, draw_tenths
from tools.datasets.table_command import INPUT, open_table, run_command, table_parser
from tools.history import read_history

SCORES = ("aes", "match", "quality", "flow")  # the first of them orders the examples
UNITS = {
    "aes": "1 to 10",
    "match": "cosine",
    "flow": "% of the shorter side per second",
    "jitter": "% of the shorter side per second",
    "text_area": "share of the frame",
    "ocr": "boxes",
    "height": "pixels",
    "width": "pixels",
    "resolution": "pixels",
    "aspect_ratio": "height / width",
    "fps": "frames per second",
    "num_frames": "frames",
    "bitrate": "bits per second",
    "nsfw": "probability",
}
_NO_SCORES = (
    "shot",
    "start",
    "end",
    "start_frame",
    "end_frame",
    "id",
    "index",
    "clip",
    "source_start",
    "source_end",
    "seconds",
)
# By blanks: a regular expression would take a minute for ten million captions.
_WORDS = "CASE WHEN trim(text) = '' THEN 0 ELSE length(trim(text)) - length(replace(trim(text), ' ', '')) + 1 END"
_MOST_LABELS = 40  # different values of a column of words that is drawn


@dataclass(frozen=True)
class Chart:
    """One picture of the report."""

    file: str
    title: str
    drawings: list[Histogram | Bars]


def charts(database: Database, source: Source) -> list[Chart]:
    """Histograms of lengths and sizes, captions, every other column of numbers, and columns of few words."""
    groups: dict[str, list[Histogram | Bars | None]] = {
        "scores": [],
        "lengths and sizes": [],
        "captions": [],
        "kinds": [],
    }

    def add(group: str, value: str, title: str, unit: str) -> None:
        groups[group].append(histogram(database, source, value, title, unit))

    columns = source.types
    if "start" in columns and "end" in columns:
        add("lengths and sizes", '"end" - "start"', "seconds", "of a shot, start to end")
    elif "num_frames" in columns and "fps" in columns:
        add("lengths and sizes", "num_frames / nullif(fps, 0)", "seconds", "num_frames / fps")
    elif "seconds" in columns:
        add("lengths and sizes", "seconds", "seconds", "")
    if "text" in columns:
        add("captions", "length(text)", "characters of a caption", "characters")
        add("captions", _WORDS, "words of a caption", "words")
    sizes = ("num_frames", "fps", "height", "width", "resolution", "aspect_ratio")
    for column, kind in columns.items():
        if is_number(kind) and column not in _NO_SCORES:
            add("lengths and sizes" if column in sizes else "scores", name(column), column, UNITS.get(column, ""))
        elif kind in ("VARCHAR", "BOOLEAN") and column not in ("path", "source_path", "text", "url"):
            [different] = database.row(f"SELECT approx_count_distinct({name(column)}) FROM {source.view}")
            if 0 < different <= _MOST_LABELS:
                groups["kinds"].append(bars(database, source, name(column), column))
    drawings = {title: [each for each in group if each is not None] for title, group in groups.items()}
    return [Chart(f"{title.replace(' ', '-')}.png", title, group) for title, group in drawings.items() if group]


def tenths(database: Database, source: Source, column: str, examples: int, seed: int) -> list[Tenth]:
    """Rows drawn of each tenth of the table, ordered by a column, with a frame of each."""
    bounds = quantiles(database, source, name(column), 10)
    wanted = ("path", "start", "end", "start_frame", "end_frame", "text")
    cells = ", ".join(name(each) for each in wanted if each in source.types)
    value = f"CAST({name(column)} AS DOUBLE)"
    result = []
    for place, (low, high) in enumerate(pairwise(bounds)):
        inside = f"{value} >= {low!r} AND {value} {'<=' if place == 9 else '<'} {high!r}"
        relation = database.connection.execute(
            f"SELECT {cells}, {value} AS value FROM {source.numbered} WHERE {inside} ORDER BY {draw(name(ROW), seed)} "
            f"LIMIT {examples}"
        )
        names = [each[0] for each in relation.description]
        rows = [dict(zip(names, row)) for row in relation.fetchall()]
        result.append(Tenth(low, high, [_example(row, source.folder) for row in rows]))
    return result


def _example(row: dict[str, Any], folder: str) -> Example:
    path = os.path.normpath(os.path.join(folder, os.path.expanduser(str(row["path"] or "").strip())))
    shot = read_shot({**row, "path": path}, os.path.basename(path))
    text = "" if is_missing(row.get("text")) else str(row["text"])
    return Example(os.path.basename(path), text, float(row["value"]), shot.frame, shot.error)


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.analyze", __doc__)
    parser.add_argument("source", metavar="TABLE", help=INPUT)
    parser.add_argument("output", metavar="FOLDER", help="folder of the report")
    parser.add_argument(
        "--by", metavar="COLUMN", help=f"orders the examples (default: the first of {', '.join(SCORES)})"
    )
    parser.add_argument("--examples", type=int, default=6, help="frames of each tenth; 0: none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of examples (default: %(default)s)")
    return run_command(parser, argv, _analyze)


def _analyze(options: argparse.Namespace) -> None:
    if os.path.isfile(options.output) or not 0 <= options.examples <= 100:
        raise ConfigError(
            f"analyze: FOLDER {options.output}, --examples {options.examples}; allowed: a folder, 0 to 100 examples"
        )
    folder = Path(options.output)
    with Database(str(folder / "index.html"), memory_gb=options.memory_gb) as database:
        source = open_table(database, options.source, options)
        if not source.rows:
            raise DataError(f"{options.source}: has no row; a report needs at least one")
        column = options.by or next((each for each in SCORES if is_number(source.types.get(each, ""))), None)
        if options.by is not None:
            source.require(options.by)
            if not is_number(source.types[options.by]):
                raise ConfigError(
                    f"analyze: --by {options.by}: holds {source.types[options.by]}; allowed: a column of numbers"
                )
        pictures = charts(database, source)
        for chart in pictures:
            _save(folder / chart.file, lambda part, chart=chart: draw_charts(chart.drawings, part))
        rows = []
        if column is not None and options.examples and "path" in source.types:
            [count] = database.row(f"SELECT count({name(column)}) FROM {source.view}")
            rows = tenths(database, source, column, options.examples, options.seed) if count else []
        if rows:
            _save(folder / "examples.png", lambda part: draw_tenths(rows, column or "", part))
        facts = describe(database, source)
        page = _page(source, facts, pictures, column if rows else None, read_history(options.source))
        _save(folder / "index.html", lambda part: files.write_text(part, page))
    unreadable = [each.error for tenth in rows for each in tenth.examples if each.error]
    if unreadable:
        print(f"{len(unreadable)} examples cannot be read, the first: {unreadable[0]}", file=sys.stderr)
    print(folder / "index.html")


def _save(path: Path, fill: Any) -> None:
    with files.write_errors_as(DataError, path, "choose a writable place with free space"):
        files.atomic_write(path, fill)


_STYLE = (
    "body{font:14px sans-serif;margin:24px auto;max-width:1200px;color:#222}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{padding:2px 10px;text-align:left;border-bottom:1px solid #ddd}"
)


def _page(
    source: Source, facts: Sequence[Any], pictures: Sequence[Chart], column: str | None, history: Sequence[Any]
) -> str:
    def cells(tag: str, values: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(_words(value))}</{tag}>" for value in values) + "</tr>"

    head = cells("th", ("column", "type", "empty", "different", "min", "median", "max"))
    rows = [
        (each.name, each.type, each.empty, each.different, each.lowest, each.median, each.highest) for each in facts
    ]
    title = html.escape(f"{source.path}: {source.rows:,} rows")
    parts = [f"<h1>{title}</h1>", f"<table>{head}{''.join(cells('td', row) for row in rows)}</table>"]
    for each in pictures:
        words = html.escape(each.title)
        parts.append(f'<h2>{words}</h2><img src="{html.escape(each.file)}" alt="{words}">')
    if column is not None:
        parts.append(f'<h2>examples by {html.escape(column)}</h2><img src="examples.png" alt="examples">')
    steps = "".join(
        f"<li>{html.escape(str(step.get('tool')))}: {html.escape(str(step.get('arguments')))}</li>" for step in history
    )
    parts.append(f"<h2>history</h2><ol>{steps}</ol>" if steps else "<h2>history</h2><p>none was recorded</p>")
    return f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>{"".join(parts)}\n'


def _words(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
