"""Descriptions of tables."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from opensora.datasets.table import write_table
from tools.datasets.filter import main as filter_main
from tools.datasets.info import main

pytest.importorskip("duckdb")


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"path": f"{n}.mp4", "text": "dog" * n, "aes": aes, "ok": n > 1} for n, aes in enumerate([4, 6.5, None, 9])]
    write_table(str(tmp_path / "a.parquet"), rows)
    assert main([str(tmp_path / "a.parquet"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    described = [
        [each[key] for key in ("type", "empty", "different", "lowest", "median", "highest")]
        for each in facts["columns"]
    ]
    assert (facts["rows"], [each["name"] for each in facts["columns"]]) == (4, ["path", "text", "aes", "ok"])
    assert described == [
        ["VARCHAR", 0, 4, 5, 5.0, 5],
        ["VARCHAR", 0, 4, 0, 4.5, 9],
        ["DOUBLE", 1, 3, 4.0, 6.5, 9.0],
        ["BOOLEAN", 0, 2, None, None, None],
    ]
    assert main([str(tmp_path / "a.parquet")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/a.parquet: 4 rows, 4 columns"
    assert lines[4].split() == ["aes", "DOUBLE", "1", "3", "4", "6.5", "9", "4"]
    assert lines[-1] == "history: none was recorded"


def test_history_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parquet and CSV hold the steps that made them, with the arguments, the version and a hash of the input."""
    write_table(str(tmp_path / "a.csv"), [{"path": "a.mp4", "aes": 5}])
    files = [str(tmp_path / name) for name in ("a.csv", "b.parquet", "c.csv", "d")]
    for before, after in pairwise(files):
        assert filter_main([before, after, "--keep", "aes > 1"]) == 0
    capsys.readouterr()
    for count, table in enumerate(files):
        assert main([table, "--json"]) == 0
        history = json.loads(capsys.readouterr().out)["history"]
        assert [step["tool"] for step in history] == ["tools.datasets.filter"] * count
        assert [step["inputs"][0]["path"] for step in history] == files[:count]
        assert all(
            step["arguments"]["keep"] == ["aes > 1"] and len(step["inputs"][0]["hash"]) == 32 for step in history
        )
    assert main([files[2]]) == 0
    assert "  2. tools.datasets.filter " in capsys.readouterr().out
