"""Manifests as JSON lines and as folders of shards: the rules of a CSV, and the file and line of each row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opensora.datasets.manifest import read_manifest
from opensora.datasets.row_places import RowPlaces
from opensora.datasets.table import table_files, write_table
from opensora.errors import DataError


def write_lines(path: Path, *lines: object) -> str:
    path.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines))
    return str(path)


def test_json_lines(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "train.jsonl",
        {"path": "a.mp4", "text": "A cat", "num_frames": 16, "fps": 8.5, "start": 1, "other": [1]},
        "",
        {"text": 7.0, "path": "b.mp4", "height": "32", "num_frames": None},
        {"path": "/c.mp4", "text": True, "width": 64.0},
    )
    first, second, third = read_manifest(path, block_rows=1).rows
    assert (first.path, first.text, first.num_frames, first.fps) == (f"{tmp_path}/a.mp4", "A cat", 16, 8.5)
    assert (first.start, first.end, first.height) == (1.0, None, None)
    assert (second.text, second.height, second.num_frames) == ("7", 32, None)
    assert (third.path, third.text, third.width) == ("/c.mp4", "True", 64)
    assert [row.location for row in (first, second, third)] == [f"{path}:{line}" for line in (1, 3, 4)]


BAD_LINES: list[tuple[Any, str, str]] = [
    ("{", "not a JSON object", "the line is not JSON"),
    ("[1]", "not a JSON object", "the line is a JSON list"),
    ('{"path": "a.mp4", "text": "\\ud800"}', "not UTF-8", "text holds half a character"),
    ({"path": "a.mp4", "text": ["a", "cat"]}, "not a text", "text holds a JSON list"),
    ({"path": "a.mp4", "text": "x", "start": {"s": 1}}, "not a text", "start holds a JSON dict"),
    ({"path": "a.mp4"}, "empty caption", "the caption is empty"),
    ({"path": None, "text": "x"}, "empty path", "the path is empty"),
    ({"path": "a.mp4", "text": "x", "fps": True}, "bad number", "fps is 'True'"),
    ({"path": "a.mp4", "text": "x", "fps": 10**400}, "bad number", "fps is '1000"),
    ({"path": "b.mp4", "text": "x"}, "duplicate row", "repeats the path, start and end of line 1"),
]


@pytest.mark.parametrize(("line", "reason", "says"), BAD_LINES)
def test_bad_line_is_dropped(tmp_path: Path, line: object, reason: str, says: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"path": "b.mp4", "text": "x"}, "", line, {"path": "c.mp4", "text": "y"})
    manifest = read_manifest(path)
    assert [row.text for row in manifest.rows] == ["x", "y"]
    assert [(each.reason, each.message.startswith(f"{path}:3: {says}")) for each in manifest.dropped] == [
        (reason, True)
    ]


def test_no_line_is_json(tmp_path: Path) -> None:
    manifest = read_manifest(write_lines(tmp_path / "a.jsonl", "{", "}"))
    assert (len(manifest.rows), len(manifest.dropped)) == (0, 2)


def test_shards_are_one_manifest(tmp_path: Path) -> None:
    """Of three formats, with different columns; paths belong to the folder, and each row is found where it stands."""
    folder = tmp_path / "shards"
    write_table(str(folder / "a.parquet"), [{"path": "0.mp4", "text": "x"}, {"path": "1.mp4", "text": " "}])
    write_table(str(folder / "b.csv"), [{"path": f"{folder}/2.mp4", "text": "two\nlines", "num_frames": 9}])
    write_table(str(folder / "c.csv"), [], ["path", "text"])
    write_lines(
        folder / "d.jsonl",
        {"path": "./0.mp4", "text": "again"},
        {"path": "3.mp4", "text": "y", "start": 2},
        {"path": "3.mp4", "text": "z", "start": 2.0},
    )
    for name in ("b.csv.errors.jsonl", ".b.csv", "b.csv.history.json", "notes.txt"):
        (folder / name).write_text("no table")
    manifest = read_manifest(str(folder))
    assert [(row.index, row.path, row.num_frames, row.start, row.location) for row in manifest.rows] == [
        (0, f"{folder}/0.mp4", None, None, f"{folder}/a.parquet:1"),
        (2, f"{folder}/2.mp4", 9, None, f"{folder}/b.csv:2"),
        (4, f"{folder}/3.mp4", None, 2.0, f"{folder}/d.jsonl:2"),
    ]
    assert [each.message.split(";")[0] for each in manifest.dropped] == [
        f"{folder}/a.parquet:2: the caption is empty",
        f"{folder}/d.jsonl:1: repeats the path, start and end of {folder}/a.parquet:1",
        f"{folder}/d.jsonl:3: repeats the path, start and end of line 2",
    ]
    assert [row.text for row in manifest.rows.take(np.array([2, 0]))] == ["y", "x"]


def test_a_shard_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    write_table(str(tmp_path / "a.csv"), [{"path": "0.mp4", "text": "x"}])
    write_table(str(tmp_path / "b.jsonl"), [{"path": "0.mp4"}])
    with pytest.raises(DataError, match=r"b\.jsonl: no column 'text'; found columns 'path'"):
        read_manifest(str(tmp_path))


def test_files_of_a_table(tmp_path: Path) -> None:
    assert table_files(f"{tmp_path}/none.csv") == [f"{tmp_path}/none.csv"]
    for name in ("b.csv", "a.PARQUET"):
        (tmp_path / name).touch()
    assert table_files(str(tmp_path)) == [f"{tmp_path}/a.PARQUET", f"{tmp_path}/b.csv"]


def test_places() -> None:
    places = RowPlaces()
    places.add("none.csv", 0, np.zeros(0, np.int64))
    places.add("a.csv", 2, np.array([2, 5]))
    places.add("b.parquet", 1, None)
    assert [places.location(index) for index in range(3)] == ["a.csv:2", "a.csv:5", "b.parquet:1"]
    assert (places.location_from(0, 1), places.location_from(0, 2)) == ("line 2", "a.csv:2")
