"""Manifests: rows that are kept, rows that are dropped with their messages, alike for CSV and Parquet."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from opensora.datasets.manifest import ManifestRow, read_manifest
from opensora.datasets.row_report import MAX_MESSAGES, Report, count_rows
from opensora.datasets.table import write_table
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
    (b"b.mp4,a cat, and a dog\n", "bad number", "start is 'and a dog'"),
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
    manifest = read_manifest(write(tmp_path, head + bad + b"c.mp4,fine,,\n"))
    assert [row.text for row in manifest.rows] == ["ok", "two\nlines", "fine"]
    assert [row.index for row in manifest.rows] == [0, 1, 3]
    [dropped] = manifest.dropped
    assert dropped.reason == reason
    assert dropped.message.startswith(f"{tmp_path}/train.csv:5: {says}")


def test_shots_of_one_video_are_not_duplicates(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, "path,text,start,end\na.mp4,x,0,1\na.mp4,x,1,2\n"))
    assert len(manifest.rows) == 2
    assert not manifest.dropped


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
    {"path": "./e.mp4", "text": "the same file again", "start": 1.0},
    {"path": "sub//../e.mp4", "text": "and again", "start": 1.0},
    {"path": "007.mp4", "text": "007", "num_frames": 8},
    {"path": "NA", "text": "null", "num_frames": 8},
    {"path": "nan", "text": "NA"},
    {"path": ".hidden/h.mp4", "text": "a \0 byte, \ufeff mark"},
]
NUMBERS = ("num_frames", "height", "width", "fps", "start", "end")


def write_parquet(folder: Path, rows: list[dict[str, Any]], kinds: dict[str, Any] | None = None) -> str:
    path = str(folder / "train.parquet")
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = {name: pyarrow.array([row.get(name) for row in rows], (kinds or {}).get(name)) for name in names}
    pyarrow.parquet.write_table(pyarrow.table(arrays), path, row_group_size=5)
    return path


def values_of(row: ManifestRow) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in ("index", "path", "text", *NUMBERS))


@pytest.mark.parametrize("as_text", [False, True], ids=["numbers", "numbers as text"])
@pytest.mark.parametrize("block_rows", [4, 1000])
def test_csv_and_parquet_read_alike(tmp_path: Path, as_text: bool, block_rows: int) -> None:
    rows = ROWS
    if as_text:
        rows = [{k: str(v) if k in NUMBERS and v is not None else v for k, v in row.items()} for row in rows]
    write_table(str(tmp_path / "train.csv"), rows)
    kinds = dict.fromkeys(NUMBERS, pyarrow.string()) if as_text else {}
    parquet = read_manifest(write_parquet(tmp_path, rows, kinds), block_rows=block_rows)
    csv = read_manifest(str(tmp_path / "train.csv"), block_rows=block_rows)
    assert [values_of(row) for row in parquet.rows] == [values_of(row) for row in csv.rows]
    kept = [0, 1, 11, 14, 15, 16, 20, 21, 22, 23]
    assert [row.index for row in csv.rows] == kept
    assert [row.text for row in csv.rows][-4:] == ["007", "null", "NA", "a \0 byte, \ufeff mark"]
    for name in ("index", *NUMBERS):
        columns = [getattr(manifest.rows.columns, name) for manifest in (parquet, csv)]
        np.testing.assert_array_equal(*columns, err_msg=name)
        assert columns[0].dtype == columns[1].dtype
    # a Parquet has no header line
    located = [
        [(row.reason, int(row.message.split(":")[1]) + header) for row in manifest.dropped]
        for manifest, header in ((parquet, 1), (csv, 0))
    ]
    assert located[0] == located[1]
    assert sorted(line - 2 for _, line in located[0]) == [n for n in range(len(ROWS)) if n not in kept]
    if as_text:  # else the messages quote 0 and '0'
        csv_sentences = [row.message.split(": ", 1)[1] for row in csv.dropped if row.reason != "duplicate row"]
        assert csv_sentences == [
            row.message.split(": ", 1)[1] for row in parquet.dropped if row.reason != "duplicate row"
        ]
    assert sum("of line 1;" in row.message for row in parquet.dropped) == 1
    assert sum("of line 2;" in row.message for row in csv.dropped) == 1


@pytest.mark.parametrize("number", ["1_6", " 16", "16.0", "1.6e1", "+16"])
def test_numbers_are_those_of_python(tmp_path: Path, number: str) -> None:
    [row] = read_manifest(write(tmp_path, f"path,text,num_frames\na.mp4,x,{number}\n")).rows
    assert row.num_frames == 16


def test_last_cells_may_be_missing(tmp_path: Path) -> None:
    rows = read_manifest(write(tmp_path, "path,text,start,end\n\na.mp4,x\n\nb.mp4,y,1\n")).rows
    assert [(row.location[-1], row.start, row.end) for row in rows] == [("3", None, None), ("5", 1.0, None)]


def test_unclosed_quote_is_a_dropped_row(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, 'path,text\na.mp4,"a cat\nb.mp4,dog\n'))
    assert [row.text for row in manifest.rows] == ["dog"]
    assert [(row.reason, row.message.split(": ")[0][-2:]) for row in manifest.dropped] == [("quote not closed", ":2")]
    manifest = read_manifest(write(tmp_path, 'path,text\na.mp4,"' + "b.mp4,dog\n" * 20_000))
    assert (len(manifest.rows), count_rows(manifest.dropped)) == (1, 19_999)  # the others repeat it


def test_duplicates_reach_over_blocks_and_absolute_paths(tmp_path: Path) -> None:
    text = f"path,text\na.mp4,x\nb.mp4,x\n{tmp_path}/a.mp4,x\n/elsewhere/a.mp4,x\n../{tmp_path.name}/b.mp4,x\n"
    manifest = read_manifest(write(tmp_path, text), block_rows=1)
    assert [row.path for row in manifest.rows] == [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4", "/elsewhere/a.mp4"]
    assert [row.message.split(";")[0][-6:] for row in manifest.dropped] == ["line 2", "line 3"]


@pytest.mark.parametrize("name", ["train.csv", "train.parquet"])
def test_repeated_slashes_below_the_folder_of_the_manifest(tmp_path: Path, name: str) -> None:
    """Joined by hand, as folder + "/" + "/a.mp4": it is not the file /a.mp4."""
    spellings = [f"{tmp_path}//a.mp4", "a.mp4", f"{tmp_path}///a.mp4", f"{tmp_path}/", "."]
    if name.endswith(".csv"):
        path = write(tmp_path, "path,text\n" + "".join(f"{spelling},x\n" for spelling in spellings))
    else:
        path = write_parquet(tmp_path, [{"path": spelling, "text": "x"} for spelling in spellings])
    manifest = read_manifest(path)
    assert [row.path for row in manifest.rows] == [f"{tmp_path}/a.mp4", str(tmp_path)]
    assert count_rows(manifest.dropped) == 3


def test_nan_of_either_sign_is_one_empty_cell(tmp_path: Path) -> None:
    """The C library prints the quotient of two zeros as -nan."""
    manifest = read_manifest(write(tmp_path, "path,text,start\na.mp4,x,-nan\na.mp4,x,\na.mp4,x,0\na.mp4,x,-0\n"))
    assert [(row.index, row.start) for row in manifest.rows] == [(0, None), (2, 0.0)]


def test_nan_is_an_empty_cell(tmp_path: Path) -> None:
    rows = read_manifest(
        write_parquet(tmp_path, [{"path": "a.mp4", "text": "x", "fps": float("nan"), "height": None}])
    ).rows
    assert (rows[0].fps, rows[0].height) == (None, None)
    (tmp_path / "train.csv").write_text("path,text,fps,height\na.mp4,x,nan,NaN\n")
    rows = read_manifest(str(tmp_path / "train.csv")).rows
    assert (rows[0].fps, rows[0].height) == (None, None)


def test_take_rows(tmp_path: Path) -> None:
    rows = read_manifest(write_parquet(tmp_path, ROWS)).rows
    part = rows.take(np.array([4, 1]))
    assert [row.index for row in part] == [rows[4].index, rows[1].index]
    assert [row.text for row in part[:1]] == [rows[4].text]
    assert len(part) == 2


@pytest.mark.parametrize("name", ["train.csv", "train.parquet"])
def test_many_refused_rows_are_counted(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    write_table(path, [{"path": f"{n}.mp4", "text": "" if n % 2 else "x"} for n in range(500)])
    manifest = read_manifest(path, block_rows=70)
    assert (len(manifest.rows), len(manifest.dropped), count_rows(manifest.dropped)) == (250, MAX_MESSAGES, 250)
    report = Report.of(manifest.path, len(manifest.rows), manifest.dropped)
    assert (report.rows, report.kept, report.count("empty caption")) == (500, 250, 250)
    assert "  dropped, empty caption: 250" in report.lines()
    assert "    ... and 247 more" in report.lines()


def test_no_rows_and_no_captions(tmp_path: Path) -> None:
    empty = {"path": pyarrow.string(), "text": pyarrow.string()}
    table = pyarrow.table({name: pyarrow.array([], kind) for name, kind in empty.items()})
    pyarrow.parquet.write_table(table, str(tmp_path / "none.parquet"))
    assert len(read_manifest(str(tmp_path / "none.parquet")).rows) == 0
    rows = read_manifest(write_parquet(tmp_path, [{"path": "a.mp4"}]), captions=False).rows
    assert [row.text for row in rows] == [""]
    with pytest.raises(DataError, match=r"column.*'text'.*'path'.*'path', 'text'"):
        read_manifest(write_parquet(tmp_path, [{"path": "a.mp4"}]))


@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        ([["a", "cat"]], pyarrow.list_(pyarrow.string()), r"column 'text' holds list<.*>, which is no text"),
        ([b"\xff\xfe"], pyarrow.binary(), r"column 'text' holds binary, which is no text \(.*UTF8"),
    ],
    ids=["lists", "bytes"],
)
def test_column_that_is_no_text(tmp_path: Path, values: list[Any], kind: Any, says: str) -> None:
    path = str(tmp_path / "train.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.mp4"], "text": pyarrow.array(values, kind)}), path)
    with pytest.raises(DataError, match=rf"train\.parquet: {says}"):
        read_manifest(path)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path, [{"path": f"{n}.mp4", "text": f"clip {n}"} for n in range(2000)]))
    whole = bytearray(path.read_bytes())
    whole[4:1000] = bytes(996)
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"train\.parquet: (cannot be read|not a Parquet file) \((?!None)"):
        read_manifest(str(path))
