"""Differences of two tables."""

from pathlib import Path
from typing import Any

import pytest

from opensora.datasets.table import read_table, write_table
from tools.datasets.diff import main

pytest.importorskip("duckdb")

OLD: list[dict[str, Any]] = [
    {"path": "a.mp4", "text": "a dog", "aes": 5.0},
    {"path": "b.mp4", "text": "a cat", "aes": 4.0},
    {"path": "c.mp4", "text": "a cow", "aes": None},
]


def run(
    folder: Path, capsys: pytest.CaptureFixture[str], new: list[dict[str, Any]], *words: str
) -> tuple[int, list[str]]:
    """Exit code and printed lines; the new table is a CSV in another folder."""
    write_table(str(folder / "old.parquet"), OLD)
    write_table(str(folder / "sub/new.csv"), new)
    code = main([str(folder / "old.parquet"), str(folder / "sub/new.csv"), *words])
    return code, capsys.readouterr().out.splitlines()


def test_equal_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The order of the rows, the format and the folder make no difference."""
    same = [{**row, "path": f"../{row['path']}", "aes": row["aes"] and int(row["aes"])} for row in reversed(OLD)]
    assert run(tmp_path, capsys, same, "--exit-code") == (0, ["rows: 0 added, 0 removed, 0 changed"])


def test_differences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = [
        {"path": f"{tmp_path}/a.mp4", "text": "a big dog", "aes": "", "flow": 1},
        {"path": f"{tmp_path}/d.mp4", "text": "new", "aes": 1, "flow": 1},
        {"path": f"{tmp_path}/c.mp4", "text": "a cow", "aes": 2.5, "flow": 1},
    ]
    code, lines = run(tmp_path, capsys, new, str(tmp_path / "changes.csv"), "--exit-code")
    old = tmp_path / "old.parquet"
    assert code == 1
    assert lines == [
        "columns added: flow",
        "rows: 1 added, 1 removed, 2 changed",
        "cells changed in aes: 2",
        "cells changed in text: 1",
        "added d.mp4",
        "removed b.mp4",
        "changed a.mp4: aes '5' -> None",
        "changed a.mp4: text 'a dog' -> 'a big dog'",
        "changed c.mp4: aes None -> '2.5'",
    ]
    assert old.exists()
    changes = read_table(str(tmp_path / "changes.csv")).rows
    assert [(row["change"], row["row_number"], row["key"], row["column_name"]) for row in changes] == [
        ("added", "2", "d.mp4", ""),
        ("changed", "1", "a.mp4", "aes"),
        ("changed", "1", "a.mp4", "text"),
        ("changed", "3", "c.mp4", "aes"),
        ("removed", "2", "b.mp4", ""),
    ]


def test_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default shots are known by path, start and end; a repeated key is named."""
    shots = [{"path": "a.mp4", "start": n, "end": n + 1} for n in range(3)]
    for name in ("old.csv", "new.csv"):
        write_table(str(tmp_path / name), shots)
    words = [str(tmp_path / "old.csv"), str(tmp_path / "new.csv")]
    assert main([*words, "--exit-code"]) == 0
    assert main([*words, "--on", "path"]) == 1
    assert "old.csv: 1 keys stand in several rows: path 'a.mp4' in 3 rows" in capsys.readouterr().err
