"""Columns of one table for the rows of another."""

import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from opensora.datasets.table import read_table, write_table
from tools.datasets.join import main

pytest.importorskip("duckdb")


def joined(folder: Path, left: list[dict[str, Any]], right: list[dict[str, Any]], *words: str) -> list[dict[str, Any]]:
    """Rows of the output; RIGHT is a Parquet file in another folder."""
    write_table(str(folder / "left.csv"), left)
    write_table(str(folder / "scores/right.parquet"), right)
    files = [str(folder / name) for name in ("left.csv", "scores/right.parquet", "out.csv")]
    assert main([*files, *words]) == 0
    return read_table(files[2]).rows


def test_paths_are_compared_as_files(tmp_path: Path) -> None:
    left = [
        {"path": "clips/a.mp4", "id": "007"},
        {"path": "b.mp4", "id": "008"},
        {"path": f"{tmp_path}/clips/a.mp4", "id": "9"},
    ]
    right = [{"path": "../clips/a.mp4", "aes": 5.5}, {"path": "b.mp4", "aes": 1.0}]
    rows = joined(tmp_path, left, right)
    assert [(row["path"], row["id"], row["aes"]) for row in rows] == [
        ("clips/a.mp4", "007", "5.5"), ("b.mp4", "008", ""), ("clips/a.mp4", "9", "5.5")
    ]  # fmt: skip


def test_keys_of_several_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """7 in a CSV equals 7.0 in a Parquet file; an empty key equals nothing."""
    left = [{"path": f"{n}.mp4", "video": video, "shot": n} for n, video in enumerate(["a", "b", "a", ""])]
    right = [
        {"video": video, "shot": shot, "text": f"{video}{shot}"} for video, shot in (("a", 2.0), ("b", 1.0), ("c", 5.0))
    ]
    right.append({"video": None, "shot": 3.0, "text": "no film"})
    rows = joined(tmp_path, left, right, "--on", "video", "shot")
    assert [row["text"] for row in rows] == ["", "b1.0", "a2.0", ""]
    assert "2 of 4 rows of" in capsys.readouterr().err
    rows = joined(tmp_path, left, right, "--on", "video", "shot", "--how", "inner")
    assert [row["path"] for row in rows] == ["1.mp4", "2.mp4"]
    assert "; 2 of 4 rows of" in capsys.readouterr().err


def test_columns_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = [{"path": "a.mp4", "text": "old"}, {"path": "b.mp4", "text": "kept"}]
    right = [{"path": f"{tmp_path}/a.mp4", "text": "new", "aes": 1}]
    rows = joined(tmp_path, left, right, "--columns", "aes")
    assert [(row["text"], row["aes"]) for row in rows] == [("old", "1"), ("kept", "")]
    rows = joined(tmp_path, left, right, "--replace")
    assert [(row["text"], row["aes"]) for row in rows] == [("new", "1"), ("kept", "")]
    files = [str(tmp_path / name) for name in ("left.csv", "scores/right.parquet", "out.csv")]
    assert main(files) == 2
    assert "both have 'text'; allowed: new columns; name those to add with --columns" in capsys.readouterr().err


def test_repeated_keys_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(str(tmp_path / "left.csv"), [{"path": "a.mp4"}])
    write_table(str(tmp_path / "right.csv"), [{"path": f"{name}.mp4", "x": 1} for name in "abacab"])
    words = [str(tmp_path / name) for name in ("left.csv", "right.csv", "out.csv")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert (
        "2 keys stand in several rows: path 'a.mp4' in 3 rows, the first of them row 1; path 'b.mp4' in 2 rows" in error
    )
    assert not (tmp_path / "out.csv").exists()


def test_no_match_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(str(tmp_path / "left.csv"), [{"path": "a.mp4"}])
    write_table(str(tmp_path / "other/right.csv"), [{"path": "a.mp4", "x": 1}])
    words = [str(tmp_path / name) for name in ("left.csv", "other/right.csv", "out.csv")]
    assert main(words) == 1
    assert "keys look like 'a.mp4' and 'other/a.mp4'; change --on" in capsys.readouterr().err
    assert main([*words, "--on", "film"]) == 2
    assert "left.csv: no column 'film'; columns: path" in capsys.readouterr().err


def test_many_rows_keep_their_order(tmp_path: Path) -> None:
    rows = 300_000
    order = list(range(rows))
    random.Random(0).shuffle(order)
    left = pyarrow.table({"id": range(rows), "path": [f"{n}.mp4" for n in range(rows)]})
    right = pyarrow.table({"id": order, "twice": [2 * n for n in order]}).slice(0, rows - 1000)
    pyarrow.parquet.write_table(left, tmp_path / "left.parquet", row_group_size=30_000)
    pyarrow.parquet.write_table(right, tmp_path / "right.parquet", row_group_size=30_000)
    words = [str(tmp_path / name) for name in ("left.parquet", "right.parquet", "out.parquet")]
    assert main([*words, "--on", "id"]) == 0
    written = pyarrow.parquet.read_table(words[2])
    missing = set(order[rows - 1000 :])
    assert written["path"].equals(left["path"])
    assert written["twice"].to_pylist() == [None if n in missing else 2 * n for n in range(rows)]
