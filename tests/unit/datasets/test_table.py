"""Tables: what is written is read back, whole or not at all."""

import errno
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from opensora.datasets.manifest import read_manifest
from opensora.datasets.table import read_table, readable_rows, write_table
from opensora.errors import DataError


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
@pytest.mark.parametrize(
    "text", ["a\rb", "a\r\nb", " led by blanks", '"', "a, b;\tc", "\ufeffmark", "\u2028\x85\x0b\0", "'"]
)
def test_odd_cells_are_read_back(tmp_path: Path, name: str, text: str) -> None:
    path = str(tmp_path / name)
    write_table(path, [{"path": "/a.mp4", "note": text, "text": text}])
    assert read_table(path).rows == [{"path": "/a.mp4", "note": text, "text": text}]


def test_parquet_with_two_columns_of_one_name(tmp_path: Path) -> None:
    path = str(tmp_path / "twice.parquet")
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["path", "text", "text"])
    pyarrow.parquet.write_table(table, path)
    for read in (read_table, read_manifest):
        with pytest.raises(DataError, match="column 'text' comes 2 times"):
            read(path)


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


def test_readable_rows_lists_the_others(tmp_path: Path) -> None:
    path = tmp_path / "videos.csv"
    path.write_bytes(b"path,text\na.mp4,x\n,y\nb.mp4,caf\xe9\nc.mp4,a,b\n\nd.mp4\nnan,x\ne\0.mp4,x\n")
    rows, messages = readable_rows(read_table(str(path)))
    assert rows == [(0, {"path": str(tmp_path / "a.mp4"), "text": "x"}), (4, {"path": str(tmp_path / "d.mp4")})]
    lines = [int(message.split(":")[1]) for message in messages]
    assert lines == [3, 4, 5, 8, 9]
    keys = ("path is empty", "'text' is not UTF-8", "1 more cells", "path is 'nan'", "null byte")
    for message, key in zip(messages, keys, strict=True):
        assert key in message


def test_source_paths_move_with_the_folder(tmp_path: Path) -> None:
    write_table(str(tmp_path / "a.csv"), [{"path": "/b.mp4", "source_path": str(tmp_path / "films" / "c.mp4")}])
    table = read_table(str(tmp_path / "a.csv"))
    assert table.rows[0]["source_path"] == "films/c.mp4"
    assert readable_rows(table)[0][0][1]["source_path"] == str(tmp_path / "films" / "c.mp4")
