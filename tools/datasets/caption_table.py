"""Give clips the captions of a table: one row per clip in, the same with its text out.

Run: python -m tools.datasets.caption_table clips.csv train.csv --captions captions.csv

The captions are keyed by columns video (the film's file name) and shot (number in that film), as tools.scene_cut writes
them. Films of one name are distinguished by their folders: monday/clip.mp4 is the film whose path ends so.
Clips without a caption, or with an empty one, are counted and left out; captions without a clip are named.
"""

import functools
import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from opensora.datasets.missing_values import is_missing
from opensora.datasets.table import read_table, require_columns
from opensora.errors import ConfigError, DataError
from tools.runner import LeftOut, Row, run

Key = tuple[str, str]  # film, shot


@dataclass(frozen=True)
class Captions:
    """The lines of a caption table."""

    texts: dict[Key, str]
    damaged: list[str]  # sentences about lines that cannot be used
    lines: dict[Key, str]  # file and line of each caption, for messages
    empty: dict[Key, str]  # file and line of those without a text


def caption(row: Row, *, captions: str) -> Row:
    """The row with column text.

    captions: table with columns video, shot, text
    """
    table = caption_table(captions)
    key = fitting_line(row, table.texts)
    if key is None:
        empty = fitting_line(row, table.empty)
        if empty is not None:
            raise LeftOut(f"{table.empty[empty]}: the caption is empty; write one there")
        damaged = f"; {len(table.damaged)} of its lines cannot be read: {table.damaged[0]}" if table.damaged else ""
        raise LeftOut(
            f"video {str(row.get('video', ''))!r}, shot {shot_name(row.get('shot'))!r}: no caption in {captions}; "
            f"add a line for it{damaged}"
        )
    return {
        "path": row["path"],
        "text": table.texts[key],
        **{name: cell for name, cell in row.items() if name not in ("path", "text")},
    }


def check_captions(rows: Sequence[Row], *, captions: str) -> None:
    """Raise ConfigError when a caption fits clips of several films; name the lines that cannot be read or are not used."""
    table = caption_table(captions)
    for message in table.damaged:
        print(f"skipped {message}", file=sys.stderr)
    films: dict[Key, str] = {}
    for row in rows:
        key, film = fitting_line(row, table.texts), film_of(row)
        if key is not None and films.setdefault(key, film) != film:
            raise ConfigError(
                f"{table.lines[key]}: video {key[0]!r} fits several films, {films[key]} and {film}; a caption belongs to "
                "one; write as much of the path as they differ in, for example monday/clip.mp4"
            )
    for key in [key for key in table.texts if key not in films]:
        print(f"{table.lines[key]}: not used, no clip is of video {key[0]!r}, shot {key[1]!r}", file=sys.stderr)


def fitting_line(row: Row, lines: Container[Key]) -> Key | None:
    """The key of the row's line in a caption table: that with the longest part of the film's path."""
    shot = shot_name(row.get("shot"))
    return next((key for name in _endings(row) if (key := (name, shot)) in lines), None)


def film_of(row: Row) -> str:
    """The path of the film that the clip was cut out of; of tables without source_path, the clip's own."""
    return str(row.get("source_path") or row["path"])


def _endings(row: Row) -> Iterator[str]:
    """The film's path, and shorter and shorter ends of it."""
    path = str(row.get("source_path") or "")
    parts = path.split("/")
    yield from ("/".join(parts[first:]) for first in range(len(parts)) if path)
    yield str(row.get("video") or "")


def shot_name(cell: object) -> str:
    """A shot's number as text: 0 for 0, "0", " 0" and 0.0."""
    text = "" if is_missing(cell) else str(cell).strip()
    try:
        return str(int(float(text))) if float(text).is_integer() else text
    except (ValueError, OverflowError):
        return text


@functools.cache
def caption_table(path: str) -> Captions:
    """The captions by film and shot; DataError names the line of a repeated entry."""
    table = read_table(path)
    require_columns(table.path, table.columns, ("video", "shot", "text"))
    texts: dict[Key, str] = {}
    lines: dict[Key, str] = {}
    empty: dict[Key, str] = {}
    damaged = [f"{table.location(index)}: {error}" for index, error in table.errors.items()]
    for index, cells in enumerate(table.rows):
        if index in table.errors:
            continue
        video, text = (str(cells.get(name) or "").strip() for name in ("video", "text"))
        key = (video.removeprefix("./"), shot_name(cells.get("shot")))
        if is_missing(text):
            empty[key] = table.location(index)
            continue
        if key in texts:
            raise DataError(
                f"{table.location(index)}: repeats {lines[key]}; every (video, shot) needs one caption; correct the line, and "
                "write films of one name with their folders, for example monday/clip.mp4"
            )
        texts[key], lines[key] = text, table.location(index)
    return Captions(texts, damaged, lines, empty)


if __name__ == "__main__":
    run(caption, check=check_captions)
