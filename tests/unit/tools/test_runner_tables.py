"""Every tool can read, choose and write: kinds of tables, rows by expression and shard, errors, history, batches."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from opensora.datasets import table_writer
from opensora.datasets.table import read_table, write_table
from tests.unit.tools.tool_functions import Batches, double
from tools.history import read_history
from tools.runner import main


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(path: str, names: list[str], **columns: list[Any]) -> str:
    rows = [{"path": f"{name}.mp4", "name": name} for name in names]
    for column, cells in columns.items():
        rows = [{**row, column: cell} for row, cell in zip(rows, cells, strict=True)]
    write_table(path, rows)
    return path


def names(path: str) -> list[str]:
    return [row["name"] for row in read_table(path).rows]


def go(*arguments: str) -> int:
    return main(double, [*arguments, "--times", "1"])


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_kinds_of_tables(work: Path, ending: str) -> None:
    source = make(f"in{ending}", ["a", 'b, "c"\nd'], seconds=[1.5, None])
    assert go(source, f"out{ending}") == 0
    first, second = read_table(f"out{ending}").rows
    assert (first["path"], first["name"], second["name"]) == ("a.mp4", "a", 'b, "c"\nd')
    assert [row["seconds"] for row in (first, second)] == (["1.5", ""] if ending == ".csv" else [1.5, None])


def test_folder_of_shards(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_writer, "ROWS_PER_SHARD", 2)
    every = [f"n{number}" for number in range(4)]
    assert go(make("in.csv", every), "shards") == 0
    assert sorted(os.listdir("shards")) == ["part-00000.parquet", "part-00001.parquet"]
    assert names("shards/part-00001.parquet") == ["n2", "n3"]
    assert go("shards", "out.jsonl") == 0
    assert names("out.jsonl") == every
    assert read_table("shards/part-00000.parquet").rows[0]["path"] == str(work / "n0.mp4")  # outside of its folder
    assert read_table("out.jsonl").rows[0]["path"] == "n0.mp4"
    assert go("out.jsonl", "shards") == 0  # over the earlier ones
    Path("shards/notes.txt").touch()
    assert go("out.jsonl", "shards") == 1
    assert names("shards/part-00000.parquet") == ["n0", "n1"]


def test_types_are_those_of_all_rows(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_writer, "_ROWS_AT_A_TIME", 2)
    make("in.jsonl", ["a", "b", "c"], x=[1, None, 2.5], y=[1, 2, "three"], z=[None, None, None])
    assert go("in.jsonl", "out.parquet") == 0
    table = pyarrow.parquet.read_table("out.parquet")
    assert table["x"].to_pylist() == [1.0, None, 2.5]
    assert table["y"].to_pylist() == ["1", "2", "three"]
    assert table.schema.field("z").type == pyarrow.string()


def test_damaged_lines_of_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_bytes(b'{"path": "a.mp4", "name": "a"}\n\n[1]\n{"path"\n{"name": "x"}\n"caf\xe9"\n')
    assert go("in.jsonl", "out.csv") == 0
    errors = [json.loads(line) for line in Path("out.csv.errors.jsonl").read_text().splitlines()]
    assert [each["location"] for each in errors] == [f"in.jsonl:{line}" for line in (3, 4, 5, 6)]
    assert [each["error"].split("(")[0].split(";")[0].strip() for each in errors] == [
        "the line is a JSON list",
        "the line is not JSON",
        "the path is empty",
        "the line is not UTF-8",
    ]
    assert "1 rows from 5, 4 bad rows skipped, see out.csv.errors.jsonl" in capsys.readouterr().err


def test_rows_by_expression(work: Path) -> None:
    make("in.csv", ["a", "b", "c", "d"], aes=["4.5", "10", "", "6"], id=["007", "8", "9", "10"])
    assert go("in.csv", "out.csv", "--where", "aes > 5 -- numbers, not text") == 0
    assert names("out.csv") == ["b", "d"]
    assert go("in.csv", "out.csv", "--where", "id = '007' or name in ('d')") == 0
    assert names("out.csv") == ["a", "d"]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_nan_is_no_number(work: Path, ending: str) -> None:
    make(f"in{ending}", ["a", "b", "c"], aes=[float("nan"), 6.0, 4.0])
    assert go(f"in{ending}", "out.csv", "--where", "aes > 5") == 0
    assert names("out.csv") == ["b"]


@pytest.mark.parametrize(
    "expression",
    ["aes >", "nothing = 1", "1; select 1", "count(*) > 1", "path in (select content from read_text('/etc/passwd'))",
     "name = (select max(name) from rows)", "true) from manifest; set enable_external_access = true; select (1"],
)  # fmt: skip
def test_wrong_expressions(work: Path, expression: str, capsys: pytest.CaptureFixture[str]) -> None:
    make("in.csv", ["a"], aes=["4"])
    assert go("in.csv", "out.csv", "--where", expression) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"--where {expression!r}: ")
    assert "over the columns path, name, aes" in stderr
    assert not Path("out.csv").exists()


def test_shards_and_limit_after_the_expression(work: Path) -> None:
    make("in.csv", [f"n{number}" for number in range(7)], x=list(range(7)))
    for shard, expected in (("1/2", ["n1", "n3", "n5"]), ("2/2", ["n2", "n4", "n6"]), ("1/1", None)):
        assert go("in.csv", "out.csv", "--where", "x > 0", "--shard", shard) == 0
        assert names("out.csv") == (expected or [f"n{number}" for number in range(1, 7)])
    assert go("in.csv", "out.csv", "--where", "x > 0", "--shard", "2/2", "--limit", "2") == 0
    assert names("out.csv") == ["n2", "n4"]
    with pytest.raises(SystemExit):
        go("in.csv", "out.csv", "--shard", "0/2")


def test_errors_are_kept_in_a_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("in.csv", ["a", "bad", "b"])
    assert go("in.csv", "out.csv") == 0
    error = {"location": "in.csv:3", "error": "this one is bad", "row": {"path": str(work / "bad.mp4"), "name": "bad"}}
    assert [json.loads(line) for line in Path("out.csv.errors.jsonl").read_text().splitlines()] == [error]
    make("in.csv", ["a", "b"])
    assert go("in.csv", "out.csv", "--resume") == 0
    assert not Path("out.csv.errors.jsonl").exists()


def test_too_many_errors(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("in.csv", ["bad", "a", "bad", "bad", "b"])
    assert go("in.csv", "out.csv", "--max-errors", "3") == 0
    assert go("in.csv", "new.csv", "--max-errors", "2") == 1
    assert (
        "stopped, 3 rows are bad and --max-errors is 2; the first: in.csv:2: this one is bad" in capsys.readouterr().err
    )
    assert not Path("new.csv").exists()


@pytest.mark.parametrize("ending", [".csv", ".parquet", ""])
def test_history(work: Path, ending: str) -> None:
    source = make("in.csv", ["a", "bad", "b"])
    assert go(source, f"one{ending}", "--limit", "2", "--workers", "1") == 0
    assert main(double, [f"one{ending}", "in.csv", f"two{ending}", "--word", "yo"]) == 0
    first, second = read_history(f"two{ending}")
    assert read_history(f"one{ending}") == [first]
    assert first["tool"] == "tests.unit.tools.tool_functions"
    assert first["arguments"] == {"times": 1, "word": "hi", "half": False, "kind": "a", "log": None, "limit": 2}
    assert (first["rows"], first["bad"], first["version"]) == (2, 1, "0.1.0")
    assert [each["path"] for each in second["inputs"]] == [f"one{ending}", "in.csv"]
    assert second["inputs"][1]["hash"] == first["inputs"][0]["hash"]
    assert second["inputs"][0]["hash"] != second["inputs"][1]["hash"]
    assert second["arguments"]["word"] == "yo"


def test_batches(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An object is made once; what one row of a batch breaks is done row by row."""
    make("in.csv", ["a", "bad", "two", "none", "b", "odd", "c"])
    Batches.loaded = 0
    assert main(Batches, ["in.csv", "out.csv", "--log", "log"], batch_size=4) == 1
    assert names("out.csv") == ["a", "two", "two", "b", "c"]
    assert {row["loaded"] for row in read_table("out.csv").rows if row["loaded"]} == {"1"}
    assert Path("log").read_text().split() == ["4", "3", "1", "1", "1"]
    stderr = capsys.readouterr().err
    assert "in.csv:3: this one is bad" in stderr
    assert "in.csv:7: unexpected KeyError: 'surprise'" in stderr


def test_a_tool_that_cannot_be_loaded_ends_the_command(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make("in.csv", ["a", "b"])
    assert main(Batches, ["in.csv", "out.csv", "--log", "no weights"], batch_size=1) == 1
    assert capsys.readouterr().err == "no weights: they are not there\n"


def test_batches_in_workers(work: Path) -> None:
    make("in.csv", [f"n{number}" for number in range(12)])
    assert main(Batches, ["in.csv", "out.csv", "--workers", "2", "--log", "log"], batch_size=2) == 0
    rows = read_table("out.csv").rows
    assert [row["name"] for row in rows] == [f"n{number}" for number in range(12)]
    assert {row["loaded"] for row in rows} == {"1"}
    assert str(os.getpid()) not in {row["pid"] for row in rows}
    assert Path("log").read_text().split() == ["2"] * 6
