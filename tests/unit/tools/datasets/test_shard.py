"""A table as a folder of Parquet files."""

import os
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.unit.tools.datasets.test_filter import manifest, numbers
from tools.datasets.filter import main as filter_main
from tools.datasets.shard import main, shard_rows

pytest.importorskip("duckdb")


def test_shards_hold_the_rows_in_order(tmp_path: Path) -> None:
    source, folder = manifest(tmp_path, [{"text": f"clip {number}"} for number in range(10)]), tmp_path / "shards"
    assert main([source, str(folder), "--shards", "3"]) == 0
    assert sorted(os.listdir(folder)) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    rows = [pyarrow.parquet.read_table(folder / name).to_pylist() for name in sorted(os.listdir(folder))]
    assert [len(each) for each in rows] == [3, 3, 4]
    assert rows[1][0] == {"path": f"{tmp_path}/3.mp4", "text": "clip 3"}
    out = tmp_path / "out.csv"
    assert filter_main([str(folder), str(out), "--keep", "true"]) == 0
    assert numbers(out) == list(range(10))
    assert (tmp_path / "in.csv").read_bytes() == out.read_bytes()
    assert main([source, str(folder), "--shards", "1"]) == 0  # takes the place of the older shards
    assert os.listdir(folder) == ["part-00000.parquet"]


def test_shards_across_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tools.datasets.database._BATCH", 4)
    assert main([manifest(tmp_path, [{}] * 23), str(tmp_path / "s"), "--shards", "5"]) == 0
    parts = [numbers(tmp_path / "s" / name) for name in sorted(os.listdir(tmp_path / "s"))]
    assert [len(part) for part in parts] == shard_rows(23, 5) == [4, 5, 4, 5, 5]
    assert [number for part in parts for number in part] == list(range(23))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["s", "--shards", "0"], 2, "--shards 0; allowed: 1 to 100000"),
        (["s.csv", "--shards", "1"], 2, "FOLDER is 's.csv'; allowed: a name without an ending"),
        (["s", "--shards", "3"], 1, "2 rows do not fill 3 shards"),
        ([".", "--shards", "1"], 1, "is a folder that holds in.csv; a folder of shards is written to a new place"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([manifest(tmp_path, [{}] * 2), *words]) == code
    assert says in capsys.readouterr().err
