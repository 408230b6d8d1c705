"""Manifests: what is read, what is dropped and how it is told, and that writing is whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from opensora.datasets.manifest import read_manifest, read_table, write_table
from opensora.errors import DataError


def write(folder: Path, text: str | bytes, name: str = "train.csv") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "path,text,num_frames,fps,height,width,start,end\na.mp4,A cat,16,8.5,32,64,,\n/b/c.mp4,dog,,,,,1,2.5\n",
    )
    first, second = read_manifest(path).rows
    assert (first.path, first.text) == (str(tmp_path / "a.mp4"), "A cat")
    assert (first.num_frames, first.fps, first.height, first.width) == (16, 8.5, 32, 64)
    assert (first.start, first.end) == (None, None)
    assert (second.path, second.num_frames, second.start, second.end) == ("/b/c.mp4", None, 1.0, 2.5)
    assert [row.index for row in (first, second)] == [0, 1]


def test_byte_order_mark_and_spaces_in_the_header(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfpath, text\r\na.mp4,ein K\xc3\xa4fer\r\n")
    assert [row.text for row in read_manifest(path).rows] == ["ein Käfer"]


@pytest.mark.parametrize("name", ["train.csv", "train.parquet"])
def test_missing_column(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    write_table(path, [{"file": "a.mp4", "text": "x"}])
    with pytest.raises(DataError, match=rf"{name}: .*column.*'path'.*'file', 'text'.*'path', 'text'"):
        read_manifest(path)


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.csv: .*column.*'path', 'text'.*none"):
        read_manifest(write(tmp_path, ""))


def test_captions_are_optional_for_an_autoencoder(tmp_path: Path) -> None:
    rows = read_manifest(write(tmp_path, "path\na.mp4\n"), captions=False).rows
    assert [row.text for row in rows] == [""]


BAD_ROWS = [
    (b"b.mp4,\n", "empty caption", "the caption is empty"),
    (b'b.mp4,"  "\n', "empty caption", "the caption is empty"),
    (b"b.mp4\n", "empty caption", "the caption is empty"),
    (b"b.mp4,caf\xe9\n", "not UTF-8", "column 'text' is not UTF-8"),
    (b"\xff.mp4,x\n", "not UTF-8", "column 'path' is not UTF-8"),
    (b",x\n", "empty path", "the path is empty"),
    (b"b.mp4,a cat, and a dog\n", "bad number", "start is ' and a dog'"),
    (b"b.mp4,x,,,a dog\n", "too many cells", "1 more cells than the header; put quotes"),
    (b"b.mp4,x,later,\n", "bad number", "start is 'later'"),
    (b"b.mp4,x,-1,\n", "bad number", "start is '-1'"),
    (b"b.mp4,x,3,2\n", "bad number", "end is 2 and start 3"),
    (b"a.mp4,again,0.5,1\n", "duplicate row", "repeats the path, start and end of line 2"),
    (b"./a.mp4,again,0.50,1.0\n", "duplicate row", "repeats the path, start and end of line 2"),
]


@pytest.mark.parametrize(("bad", "reason", "says"), BAD_ROWS)
def test_bad_row_is_dropped_with_its_line(tmp_path: Path, bad: bytes, reason: str, says: str) -> None:
    """The caption of the row before spans two lines, so the bad row begins on line 5."""
    head = b'path,text,start,end\na.mp4,ok,0.5,1\na.mp4,"two\nlines",1,2\n'
    found = read_manifest(write(tmp_path, head + bad + b"c.mp4,fine,,\n"))
    assert [row.text for row in found.rows] == ["ok", "two\nlines", "fine"]
    assert [row.index for row in found.rows] == [0, 1, 3]
    [dropped] = found.dropped
    assert dropped.reason == reason
    assert dropped.message.startswith(f"{tmp_path}/train.csv:5: {says}")


def test_shots_of_one_video_are_not_duplicates(tmp_path: Path) -> None:
    found = read_manifest(write(tmp_path, "path,text,start,end\na.mp4,x,0,1\na.mp4,x,1,2\n"))
    assert len(found.rows) == 2
    assert not found.dropped


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such manifest"),
        (lambda path: path.mkdir(), "found a folder"),
    ],
)
def test_unreadable_manifest(tmp_path: Path, make: object, says: str) -> None:
    path = tmp_path / "train.csv"
    make(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=rf"train\.csv: {says}"):
        read_manifest(str(path))


def test_text_called_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file"):
        read_manifest(write(tmp_path, "path,text\n", "a.parquet"))


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_write_and_read_back(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / "deep" / name)
    rows = [
        {"path": str(tmp_path / "deep" / "clips" / "a.mp4"), "text": 'a "big", red\ncar', "fps": 29.97},
        {"path": "/elsewhere/b.mp4", "text": "Käfer", "num_frames": 3},
    ]
    write_table(path, rows)
    assert read_table(path).columns == ["path", "text", "fps", "num_frames"]
    assert read_table(path).rows[0]["path"] == "clips/a.mp4"  # below the table: the folder can be moved
    first, second = read_manifest(path).rows
    assert (first.path, first.text, first.fps, first.num_frames) == (rows[0]["path"], rows[0]["text"], 29.97, None)
    assert (second.path, second.text, second.fps, second.num_frames) == ("/elsewhere/b.mp4", "Käfer", None, 3)


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_full_disk_leaves_the_old_table(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / name)
    write_table(path, [{"path": "/a.mp4", "text": "old"}])

    def full(part: Path) -> None:
        assert part.stat().st_size
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("opensora.files.flush", full)
    with pytest.raises(DataError, match=rf"{name}: .*No space left on device"):
        write_table(path, [{"path": "/a.mp4", "text": "new"}])
    assert [row.text for row in read_manifest(path).rows] == ["old"]
    assert os.listdir(tmp_path) == [name]


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_table(str(tmp_path / "file" / "out.csv"), [{"path": "/a.mp4"}])
