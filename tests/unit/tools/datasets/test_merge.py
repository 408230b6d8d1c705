"""Tables one after the other."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from opensora.datasets.table import read_table, write_table
from tools.datasets.merge import main

pytest.importorskip("duckdb")


def test_columns_are_matched_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers widen, a column without a value fits every type, paths name the same files, the rows keep their order."""
    write_table(
        str(tmp_path / "a/a.csv"), [{"path": "1.mp4", "aes": 5, "flow": ""}, {"path": "2.mp4", "aes": 4, "flow": ""}]
    )
    write_table(str(tmp_path / "b.parquet"), [{"text": "a dog", "flow": 1.5, "aes": 4.5, "path": "3.mp4"}])
    out = tmp_path / "all.parquet"
    assert main([str(tmp_path / "a/a.csv"), str(tmp_path / "b.parquet"), str(tmp_path / "a/a.csv"), str(out)]) == 0
    rows = pyarrow.parquet.read_table(out).to_pylist()
    first = [
        {"path": "a/1.mp4", "aes": 5.0, "flow": None, "text": None},
        {"path": "a/2.mp4", "aes": 4.0, "flow": None, "text": None},
    ]
    assert rows == [*first, {"path": "3.mp4", "aes": 4.5, "flow": 1.5, "text": "a dog"}, *first]
    assert f"{tmp_path}/a/a.csv: has no text; these cells are empty" in capsys.readouterr().err


def test_types_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(str(tmp_path / "a.csv"), [{"path": "1.mp4", "shot": 5}])
    write_table(str(tmp_path / "b.csv"), [{"path": "2.mp4", "shot": "007"}])
    words = [str(tmp_path / name) for name in ("a.csv", "b.csv", "out.csv")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert (
        f"column 'shot' holds BIGINT in {words[0]} and VARCHAR in {words[1]}; allowed: types that fit together" in error
    )
    assert main([*words, "--as-text"]) == 0
    assert [row["shot"] for row in read_table(words[2]).rows] == ["5", "007"]


def test_order_of_many_rows(tmp_path: Path) -> None:
    rows = 150_000
    for part in range(3):
        table = pyarrow.table({"n": pyarrow.array(range(part * rows, (part + 1) * rows), pyarrow.int32())})
        pyarrow.parquet.write_table(table, tmp_path / f"{part}.parquet", row_group_size=20_000)
    out = tmp_path / "out.parquet"
    assert main([*(str(tmp_path / f"{part}.parquet") for part in range(3)), str(out)]) == 0
    written = pyarrow.parquet.read_table(out)["n"]
    assert written.type == pyarrow.int32()
    assert written.to_pylist() == list(range(3 * rows))
