"""Make a manifest of a folder or of the list of a published data set.

Run: python -m tools.datasets.convert clips/ clips.parquet
     python -m tools.datasets.convert panda70m_training_2m.csv panda.parquet --videos panda/

Formats (--format; guessed where files or columns show it):
    folder          videos and pictures, captions in .txt or .json files next to them
    imagefolder     pictures in folders named after their class
    ucf101          v_CLASS_g01_c01.avi
    webvid          CSV with videoid, contentUrl, duration, page_dir, name
    panda70m        CSV with videoID, timestamp, caption, matching_score: one row per shot, with start and end
    vidprom         CSV with uuid, prompt
    open_sora_plan  JSON with path, cap, frame_idx; or .txt with lines folder,annotations.json
    open_sora       CSV with path, text and other columns, or without a header path, text, num_frames

Rows whose file is not there are counted and left out, unless --keep-missing. Next: tools.datasets.probe adds sizes.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from opensora.datasets.table_writer import table_folder
from opensora.errors import ConfigError, DataError
from opensora.files import is_utf8
from tools.datasets import folder_formats, list_formats
from tools.datasets.batch_writer import write_batches
from tools.datasets.database import Database
from tools.datasets.folder_formats import Result, Row
from tools.datasets.table_command import OUTPUT, add_switch, history_of, require_outputs, run_command, table_parser
from tools.history import history_metadata, write_history

if TYPE_CHECKING:
    import pyarrow

_BATCH = 10_000  # rows
_MOST_MESSAGES = 20
_TEXT, _NUMBER, _WHOLE = "string", "double", "int64"


@dataclass(frozen=True)
class Format:
    """A kind of source. columns: name -> Arrow type; None: those of the source, typed like a CSV."""

    read: Callable[[str, str | None], Iterator[Result]]
    columns: dict[str, str] | None


_CLIP = {"path": _TEXT, "text": _TEXT}
FORMATS = {
    "folder": Format(folder_formats.plain_folder, _CLIP),
    "imagefolder": Format(folder_formats.image_folder, {**_CLIP, "label": _TEXT}),
    "ucf101": Format(folder_formats.ucf101, {**_CLIP, "label": _TEXT, "video": _TEXT, "clip": _WHOLE}),
    "webvid": Format(list_formats.webvid, {**_CLIP, "id": _TEXT, "url": _TEXT, "seconds": _NUMBER}),
    "panda70m": Format(
        list_formats.panda70m,
        {
            **_CLIP,
            **dict.fromkeys(("start", "end"), _NUMBER),
            "video": _TEXT,
            "shot": _WHOLE,
            "matching_score": _NUMBER,
            "url": _TEXT,
        },
    ),
    "vidprom": Format(
        list_formats.vidprom,
        {**_CLIP, "id": _TEXT, "generator": _TEXT, **dict.fromkeys(list_formats.VIDPROM_SCORES, _NUMBER)},
    ),
    "open_sora_plan": Format(
        list_formats.open_sora_plan,
        {**_CLIP, **dict.fromkeys(("start", "end", "fps"), _NUMBER), "start_frame": _WHOLE, "end_frame": _WHOLE},
    ),
    "open_sora": Format(list_formats.open_sora, None),
}


@dataclass
class Counts:
    """Rows that did not become rows of the manifest."""

    read: int = 0
    missing: int = 0
    first_missing: str = ""
    skipped: Counter[str] = field(default_factory=Counter)
    without_caption: int = 0


def guess(source: str) -> str:
    """The format of a source. Raises ConfigError that says what was seen when it is none of them."""
    if os.path.isdir(source):
        name = folder_formats.guess_folder(source)
        endings = Counter(os.path.splitext(each)[1] or "no ending" for each in sorted(os.listdir(source)))
        content = (
            f"a folder with {', '.join(f'{count} x {ending}' for ending, count in endings.most_common(5)) or 'nothing'}"
        )
    elif source.lower().endswith((".csv", ".tsv", ".parquet", ".pq", ".json", ".txt")) or not os.path.exists(source):
        name = list_formats.guess_list(source)
        is_json = source.lower().endswith(".json")
        content = (
            "JSON without cap" if is_json else f"columns {', '.join(list_formats.list_columns(source)[:12]) or 'none'}"
        )
    else:
        name, content = None, f"a file that ends in {os.path.splitext(source)[1] or 'nothing'}"
    if name is None:
        raise ConfigError(
            f"{source}: of no format that is known, {content}; allowed: {', '.join(FORMATS)}; name one with --format"
        )
    return name


def rows_of(
    results: Iterable[Result], folder: str | None, counts: Counts, *, keep_missing: bool = False
) -> Iterator[Row]:
    """The rows that can be used, with paths for a table in `folder` (None: absolute); of the others the first are named."""
    prefix = "" if folder is None else folder.rstrip(os.sep) + os.sep
    for result in results:
        counts.read += 1
        if isinstance(result, str):
            if sum(counts.skipped.values()) < _MOST_MESSAGES:
                print(f"skipped {result}", file=sys.stderr)
            counts.skipped["cannot be read"] += 1
            continue
        path = os.path.normpath(os.path.abspath(result["path"]))
        if not is_utf8(path):
            print(f"skipped {path!r}: the name is not UTF-8; rename the file", file=sys.stderr)
            counts.skipped["cannot be written"] += 1
            continue
        if not keep_missing and not os.path.isfile(path):
            counts.missing += 1
            counts.first_missing = counts.first_missing or path
            continue
        counts.without_caption += not result.get("text")
        yield {**result, "path": path.removeprefix(prefix)}


def batches(rows: Iterable[Row], schema: "pyarrow.Schema") -> "Iterator[pyarrow.RecordBatch]":
    """The rows as Arrow batches."""
    import pyarrow

    every = iter(rows)
    while some := list(islice(every, _BATCH)):
        arrays = [_array([row.get(entry.name) for row in some], entry.type) for entry in schema]
        yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)


def _array(cells: list[Any], kind: "pyarrow.DataType") -> "pyarrow.Array":
    import pyarrow

    if pyarrow.types.is_string(kind):
        cells = [None if cell is None or cell == "" else str(cell) for cell in cells]
    return pyarrow.array(cells, kind)


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("tools.datasets.convert", __doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder or list")
    parser.add_argument("output", metavar="OUT", help=OUTPUT)
    parser.add_argument("--format", choices=list(FORMATS), help="(default: by the files or columns)")
    parser.add_argument("--videos", metavar="FOLDER", help="that a list's videos lie in (default: the list's)")
    add_switch(parser, "--keep-missing", "keep rows whose file is not there")
    return run_command(parser, argv, _convert)


def _convert(options: argparse.Namespace) -> None:
    import pyarrow

    require_outputs(options.output)
    if not os.path.exists(options.source):
        raise DataError(f"{options.source}: no such file or folder; check the path")
    name = options.format or guess(options.source)
    kind, counts = FORMATS[name], Counts()
    results = kind.read(options.source, options.videos)
    folder = table_folder(options.output) if kind.columns is not None else None
    rows = rows_of(results, folder, counts, keep_missing=options.keep_missing)
    columns = kind.columns or dict.fromkeys(_source_columns(options.source), _TEXT)
    schema = pyarrow.schema([(column, getattr(pyarrow, _arrow(each))()) for column, each in columns.items()])
    first = next(rows, None)
    if first is None:
        raise DataError(_nothing(options, name, counts))
    every = (row for part in ([first], rows) for row in part)
    history = history_of(options, [options.source])
    metadata = history_metadata(options.output, history)
    if kind.columns is not None:
        written = write_batches(options.output, schema, batches(every, schema), metadata=metadata)
    else:
        written = _write_typed(options, schema, batches(every, schema), metadata)
    write_history(options.output, history)
    notes = [f"{written:,} rows of {counts.read:,} ({name})"]
    notes += [f"{counts.missing:,} files are not there, the first: {counts.first_missing}"] if counts.missing else []
    notes += [f"{count:,} {reason}" for reason, count in counts.skipped.items()]
    notes += [f"{counts.without_caption:,} have no caption"] if counts.without_caption else []
    print(f"{options.output}: {'; '.join(notes)}", file=sys.stderr)


def _write_typed(
    options: argparse.Namespace,
    schema: "pyarrow.Schema",
    rows: "Iterable[pyarrow.RecordBatch]",
    metadata: Mapping[str, str],
) -> int:
    """Write rows of text with the types that a CSV's columns have."""
    with Database(options.output, memory_gb=options.memory_gb) as database:
        text = os.path.join(database.temporary, "rows.csv")
        write_batches(text, schema, rows)
        source = database.open(text)
        query = f"SELECT {source.selection(database.folder)} FROM {source.view}"
        return database.write(query, options.output, metadata=metadata)


def _source_columns(source: str) -> list[str]:
    columns = list_formats.list_columns(source)
    return columns if "path" in columns else list(list_formats.HEADLESS)


def _arrow(kind: str) -> str:
    return {"double": "float64"}.get(kind, kind)


def _nothing(options: argparse.Namespace, name: str, counts: Counts) -> str:
    why = f"{counts.read:,} rows of format {name}"
    if counts.missing:
        why += f", of {counts.missing:,} the file is not there (first {counts.first_missing})"
    advice = (
        "name the folder of the videos with --videos, or keep such rows with --keep-missing"
        if counts.missing
        else "check it"
    )
    return f"{options.output}: not written, {options.source} gives no row that can be used: {why}; {advice}"


if __name__ == "__main__":
    sys.exit(main())
