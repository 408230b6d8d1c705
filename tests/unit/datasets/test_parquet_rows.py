"""A Parquet manifest is judged in columns as a CSV is judged row by row."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from opensora.datasets import parquet_rows
from opensora.datasets.manifest import judge, read_manifest, write_table
from opensora.datasets.row_report import Report, rows_of
from opensora.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"path": "a.mp4", "text": "a cat", "num_frames": 40, "height": 32, "width": 64, "fps": 8.5},
    {"path": " b.mp4 ", "text": "  spaces ", "num_frames": 40.7, "start": 1.0, "end": 2.5},
    {"path": "", "text": "x"},
    {"path": None, "text": None},
    {"path": "c.mp4", "text": " "},
    {"path": "d.mp4", "text": "x", "num_frames": 0},
    {"path": "d.mp4", "text": "x", "fps": float("inf")},
    {"path": "e.mp4", "text": "x", "start": 3.0, "end": 3.0},
    {"path": "e.mp4", "text": "x", "end": 0.0},
    {"path": "e.mp4", "text": "x", "start": -1.0},
    {"path": "a.mp4", "text": "again", "num_frames": 3},
    {"path": "b.mp4", "text": "another shot", "start": 1.0, "end": 3.0},
    {"path": "b.mp4", "text": "the first shot again", "start": 1.0, "end": 2.5},
    {"path": "e.mp4", "text": "", "start": 1.0},
    {"path": "e.mp4", "text": "the row before was no use", "start": 1.0},
    {"path": "long/" * 40 + "f.mp4", "text": "x"},
    {"path": "long/" * 40 + "g.mp4", "text": "x"},
    {"path": "", "text": "x"},
]
NUMBERS = ("num_frames", "height", "width", "fps", "start", "end")


def write(folder: Path, rows: list[dict[str, Any]], kinds: dict[str, Any] | None = None) -> str:
    path = str(folder / "train.parquet")
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = {name: pyarrow.array([row.get(name) for row in rows], (kinds or {}).get(name)) for name in names}
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, row_group_size=5)
    return path


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> str:
    write_table(str(folder / "train.csv"), [{name: row.get(name) for name in ROWS[0] | ROWS[1]} for row in rows])
    return str(folder / "train.csv")


@pytest.mark.parametrize("kinds", [{}, dict.fromkeys(NUMBERS, pyarrow.string())], ids=["numbers", "numbers as text"])
def test_rows_and_reasons_are_those_of_a_csv(
    tmp_path: Path, kinds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "_BLOCK_ROWS", 4)
    rows = [{k: str(v) if k in kinds and v is not None else v for k, v in row.items()} for row in ROWS]
    mine, csv = read_manifest(write(tmp_path, rows, kinds)), read_manifest(as_csv(tmp_path, ROWS))
    assert len(mine.rows) == len(csv.rows) == 6

    def told(row: Any) -> tuple[Any, ...]:
        return tuple(getattr(row, name) for name in ("index", "path", "text", *NUMBERS))

    assert [told(row) for row in mine.rows] == [told(row) for row in csv.rows]
    for name in ("index", *NUMBERS):
        columns = [getattr(found.rows.columns, name) for found in (mine, csv)]
        np.testing.assert_array_equal(*columns, err_msg=name)
        assert columns[0].dtype == columns[1].dtype
    # lines of a CSV count its header
    places = [{(row.reason, int(row.message.split(":")[1])) for row in found.dropped} for found in (mine, csv)]
    assert {(reason, number + 1) for reason, number in places[0]} == places[1]
    assert len(places[0]) == 12
    assert any("line 1;" in row.message for row in mine.dropped)  # the repeated row is named


def test_a_number_that_is_none_says_nothing(tmp_path: Path) -> None:
    rows = read_manifest(write(tmp_path, [{"path": "a.mp4", "text": "x", "fps": float("nan"), "height": None}])).rows
    assert (rows[0].fps, rows[0].height) == (None, None)
    (tmp_path / "train.csv").write_text("path,text,fps,height\na.mp4,x,nan,NaN\n")
    rows = read_manifest(str(tmp_path / "train.csv")).rows
    assert (rows[0].fps, rows[0].height) == (None, None)


def test_a_part_of_the_rows(tmp_path: Path) -> None:
    rows = read_manifest(write(tmp_path, ROWS)).rows
    part = rows.take(np.array([4, 1]))
    assert [row.index for row in part] == [rows[4].index, rows[1].index]
    assert [row.text for row in part[:1]] == [rows[4].text]
    assert len(part) == 2


def test_very_many_refused_rows_are_counted_and_the_first_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "TOLD", 3)
    monkeypatch.setattr(parquet_rows, "_BLOCK_ROWS", 7)
    judged = []
    monkeypatch.setattr(parquet_rows, "judge", lambda *a: judged.append(a) or judge(*a))
    rows = [{"path": f"{n}.mp4", "text": "" if n % 2 else "x"} for n in range(40)]
    found = read_manifest(write(tmp_path, rows))
    assert (len(found.rows), len(found.dropped), rows_of(found.dropped)) == (20, 3, 20)
    report = Report.of(found.path, len(found.rows), found.dropped)
    assert (report.rows, report.kept, report.count("empty caption")) == (40, 20, 20)
    assert "  dropped, empty caption: 20" in report.lines()
    assert "    ... and 17 more" in report.lines()
    assert len(judged) <= 3 * 6


def test_no_rows_and_no_captions(tmp_path: Path) -> None:
    empty = {"path": pyarrow.string(), "text": pyarrow.string()}
    table = pyarrow.table({name: pyarrow.array([], kind) for name, kind in empty.items()})
    pyarrow.parquet.write_table(table, str(tmp_path / "none.parquet"))
    assert len(read_manifest(str(tmp_path / "none.parquet")).rows) == 0
    rows = read_manifest(write(tmp_path, [{"path": "a.mp4"}]), captions=False).rows
    assert [row.text for row in rows] == [""]
    with pytest.raises(DataError, match=r"column.*'text'.*'path'.*'path', 'text'"):
        read_manifest(write(tmp_path, [{"path": "a.mp4"}]))


def test_hashes_that_agree_are_no_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose hashes collide are compared themselves."""
    monkeypatch.setattr(parquet_rows, "_hashes", lambda paths: np.zeros(len(paths), dtype=np.uint64))
    rows = [{"path": f"{n % 3}.mp4", "text": "x"} for n in range(3)] + [{"path": "0.mp4", "text": "y"}]
    found = read_manifest(write(tmp_path, rows))
    assert [row.index for row in found.rows] == [0, 1, 2]
    assert found.dropped[0].message.endswith("repeats the path, start and end of line 1; remove one of them")


def test_hashes_tell_paths_apart() -> None:
    paths = [f"/data/{n % 7}/clip-{n}.mp4" for n in range(5000)] + ["", "a", "b", "ab", "ba", "a" * 8, "a" * 9]
    hashes = parquet_rows._hashes(pyarrow.array(paths, pyarrow.large_string()))
    assert len(set(hashes.tolist())) == len(paths)
    part = parquet_rows._hashes(pyarrow.array(paths, pyarrow.large_string())[3:50])
    assert part.tolist() == hashes[3:50].tolist()  # wherever the path lies in memory


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        ([["a", "cat"]], pyarrow.list_(pyarrow.string()), r"column 'text' holds list<.*>, which is no text"),
        ([b"\xff\xfe"], pyarrow.binary(), r"column 'text' holds binary, which is no text \(.*UTF8"),
    ],
    ids=["lists", "bytes"],
)
def test_a_column_that_is_no_text(tmp_path: Path, values: list[Any], kind: Any, says: str) -> None:
    path = str(tmp_path / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.mp4"], "text": pyarrow.array(values, kind)}), path)
    with pytest.raises(DataError, match=rf"train\.parquet: {says}"):
        read_manifest(path)


def test_damage_inside_a_file_is_told(tmp_path: Path) -> None:
    path = Path(write(tmp_path, [{"path": f"{n}.mp4", "text": f"clip {n}"} for n in range(2000)]))
    whole = bytearray(path.read_bytes())
    whole[4:1000] = bytes(996)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"train\.parquet: (cannot be read|not a Parquet file) \((?!None)"):
        read_manifest(str(path))
