"""Lists of published data sets as rows of a manifest: WebVid, Panda-70M, VidProM, Open-Sora-Plan, Open-Sora.

A list names videos; `videos` is the folder that they were downloaded to.
"""

import ast
import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from opensora.datasets.csv_rows import csv_rows, encoding_of
from opensora.datasets.decode import VIDEO_SUFFIXES, probe
from opensora.datasets.table import friendly_io_errors
from opensora.errors import BadClip, DataError
from tools.datasets.folder_formats import MEDIA, Result, caption_of, media_below

_BATCH = 10_000
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
HEADLESS = ("path", "text", "num_frames")  # columns of lists without a header, as those of Open-Sora 1.0


def list_rows(path: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(file and line, cells or why there are none) of a CSV or Parquet file."""
    with friendly_io_errors(path):
        if path.lower().endswith((".parquet", ".pq")):
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                rows = (row for batch in file.iter_batches(_BATCH) for row in batch.to_pylist())
                for number, row in enumerate(rows, start=1):
                    yield f"{path}:{number}", row
            return
        header, lines = csv_rows(path)
        for line, cells, error in lines:
            yield f"{path}:{line}", dict(zip(header, cells)) if error is None else str(error)


def list_columns(path: str) -> list[str]:
    """The names in the header of a CSV or Parquet file."""
    with friendly_io_errors(path):
        if path.lower().endswith((".parquet", ".pq")):
            import pyarrow.parquet

            return list(pyarrow.parquet.read_schema(path).names)
        return csv_rows(path)[0]


def webvid(source: str, videos: str | None) -> Iterator[Result]:
    """videoid, contentUrl, duration, page_dir, name; files are VIDEOS/page_dir/videoid.mp4 or VIDEOS/videoid.mp4."""
    folder = _folder(source, videos)
    for where, row in list_rows(source):
        if isinstance(row, str) or not row.get("videoid"):
            yield f"{where}: {row if isinstance(row, str) else 'videoid is empty; correct the row'}"
            continue
        name = f"{row['videoid']}.mp4"
        paths = [os.path.join(folder, str(row.get("page_dir") or ""), name), os.path.join(folder, name)]
        path = next((each for each in paths if os.path.exists(each)), paths[0])
        seconds = _iso_seconds(str(row.get("duration") or ""))
        yield {
            "path": path,
            "text": row.get("name"),
            "id": str(row["videoid"]),
            "url": row.get("contentUrl"),
            "seconds": seconds,
        }


def _iso_seconds(duration: str) -> float | None:
    """PT00H01M02S -> 62."""
    match = re.fullmatch(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?", duration)
    return None if match is None else sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1)))


def panda70m(source: str, videos: str | None) -> Iterator[Result]:
    """videoID, url, timestamp, caption, matching_score: lists of one entry per shot; one row per shot.

    The score is the list's own (0 to 1, by another network than column `match`).
    """
    folder = _folder(source, videos)
    for where, row in list_rows(source):
        if isinstance(row, str):
            yield f"{where}: {row}"
            continue
        try:
            lists = {name: _list(row, name) for name in ("timestamp", "caption", "matching_score") if row.get(name)}
            times = [(clock_seconds(start), clock_seconds(end)) for start, end in lists["timestamp"]]
        except (KeyError, TypeError, ValueError, SyntaxError, RecursionError) as error:
            yield f"{where}: timestamp, caption or matching_score is no list of shots ({error}); correct the row"
            continue
        if len({len(each) for each in lists.values()}) > 1:
            lengths = ", ".join(f"{len(each)} of {name}" for name, each in lists.items())
            yield f"{where}: found {lengths}; allowed: one of each for every shot; correct the row"
            continue
        video = str(row.get("videoID") or "")
        for shot, (start, end) in enumerate(times):
            yield {
                "path": os.path.join(folder, f"{video}.mp4"),
                "text": lists["caption"][shot] if "caption" in lists else None,
                "start": start,
                "end": end,
                "video": video,
                "shot": shot,
                "matching_score": float(lists["matching_score"][shot]) if "matching_score" in lists else None,
                "url": row.get("url"),
            }


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = ast.literal_eval(row[name]) if isinstance(row[name], str) else row[name]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is a {type(value).__name__}")
    return list(value)


def clock_seconds(text: str) -> float:
    """0:01:02.500 -> 62.5. Raises ValueError."""
    match = _CLOCK.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is no time such as 0:01:02.500")
    hours, minutes, seconds = match.groups()
    return round(int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds), 6)


def vidprom(source: str, videos: str | None) -> Iterator[Result]:
    """uuid, prompt and scores of the prompt; one row for each video below VIDEOS whose name holds the uuid."""
    paths: dict[str, list[str]] = {}
    for path in media_below(_folder(source, videos), VIDEO_SUFFIXES):
        match = _UUID.search(os.path.basename(path))
        if match is not None:
            paths.setdefault(match[0], []).append(path)
    for where, row in list_rows(source):
        if isinstance(row, str):
            yield f"{where}: {row}"
            continue
        uuid = str(row.get("uuid") or "")
        for path in paths.get(uuid) or [os.path.join(_folder(source, videos), f"{uuid}.mp4")]:
            generator = os.path.basename(path).split(uuid)[0].strip("-_") or None
            scores = {name: _number(row.get(name)) for name in VIDPROM_SCORES}
            yield {"path": path, "text": row.get("prompt"), "id": uuid, "generator": generator, **scores}


VIDPROM_SCORES = ("toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")


def open_sora_plan(source: str, videos: str | None) -> Iterator[Result]:
    """Annotations (.json: a list of path, cap, frame_idx "start:end"), or a .txt of lines `folder,annotations.json`."""
    if not source.lower().endswith(".txt"):
        yield from _annotations(source, _folder(source, videos))
        return
    with friendly_io_errors(source), open(source, encoding=encoding_of(source)) as file:
        for line, cells in enumerate(csv.reader(file), start=1):
            if not "".join(cells).strip():
                continue
            if len(cells) != 2:
                yield f"{source}:{line}: {len(cells)} parts; allowed: folder,annotations.json; correct the line"
                continue
            folder, annotations = (os.path.join(_folder(source, videos), cell.strip()) for cell in cells)
            yield from _annotations(annotations, folder)


def _annotations(path: str, folder: str) -> Iterator[Result]:
    for number, item in enumerate(load_json_list(path), start=1):
        where = f"{path}: item {number}"
        if not isinstance(item, dict) or not isinstance(item.get("path"), str):
            yield f"{where}: has no path; allowed: an object with path and cap; correct it"
            continue
        file = os.path.join(folder, item["path"])
        row: dict[str, Any] = {"path": file, "text": caption_of(item.get("cap"))}
        span = item.get("frame_idx") or item.get("cut")
        if span is None:
            yield row
            continue
        try:
            first, stop = (int(part) for part in (span.split(":") if isinstance(span, str) else span))
            fps = float(item["fps"]) if item.get("fps") else probe(file).fps if os.path.exists(file) else 0.0
        except (TypeError, ValueError) as error:
            yield f"{where}: frame_idx is {span!r} ({error}); allowed: 'start:end' in frames; correct it"
            continue
        except BadClip as error:
            yield f"{where}: {error}"
            continue
        if fps > 0:  # the times of a file that is not there are not known
            row |= {"start": round(first / fps, 6), "end": round(stop / fps, 6), "fps": fps}
        yield {**row, "start_frame": first, "end_frame": stop}


def load_json_list(path: str) -> list[Any]:
    """The items of a JSON file. Raises DataError when it holds no list."""
    with friendly_io_errors(path), open(path, encoding="utf-8-sig") as file:
        try:
            items = json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error}); it is damaged or cut off; get it again") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: holds a JSON {type(items).__name__}; allowed: a list of objects with path and cap")
    return items


def open_sora(source: str, videos: str | None) -> Iterator[Result]:
    """Columns as in manifests; or without a header path, text and num_frames. Numbers become numbers."""
    folder = _folder(source, videos)
    columns = list_columns(source)
    rows = list_rows(source) if "path" in columns else _headless(source)
    for where, row in rows:
        if isinstance(row, str) or not row.get("path"):
            yield f"{where}: {row if isinstance(row, str) else 'the path is empty; fill it in or remove the row'}"
            continue
        yield {**row, "path": os.path.join(folder, os.path.expanduser(str(row["path"]).strip()))}


def _headless(path: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    with friendly_io_errors(path), open(path, encoding=encoding_of(path), newline="") as file:
        for number, cells in enumerate(csv.reader(file, skipinitialspace=True), start=1):
            if len(cells) > len(HEADLESS):
                yield f"{path}: row {number}", f"{len(cells)} cells; allowed without a header: {', '.join(HEADLESS)}"
            elif cells:
                yield f"{path}: row {number}", dict(zip(HEADLESS, cells))


def _folder(source: str, videos: str | None) -> str:
    return os.path.abspath(videos if videos is not None else os.path.dirname(os.path.abspath(source)))


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def guess_list(path: str) -> str | None:
    """The format of a list, by its columns or its first item."""
    if path.lower().endswith(".txt"):
        return "open_sora_plan"
    if path.lower().endswith(".json"):
        items = load_json_list(path)
        return "open_sora_plan" if items and isinstance(items[0], dict) and "cap" in items[0] else None
    columns = list_columns(path)
    for name, needed in COLUMNS.items():
        if needed <= set(columns):
            return name
    is_headless = columns and columns[0].lower().endswith(MEDIA) and len(columns) <= len(HEADLESS)
    return "open_sora" if is_headless else None


COLUMNS = {  # format -> columns that no other has
    "webvid": {"videoid", "contentUrl", "name"},
    "panda70m": {"videoID", "timestamp", "caption"},
    "vidprom": {"uuid", "prompt"},
    "open_sora": {"path"},
}
