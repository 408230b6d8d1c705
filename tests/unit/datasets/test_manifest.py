"""Manifests: rows that are kept, rows that are dropped with their messages, alike for CSV and Parquet."""

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from opensora.datasets.manifest import ManifestRow, read_manifest
from opensora.datasets.row_report import MAX_MESSAGES, Report, count_rows
from opensora.datasets.table import read_table, readable_rows, write_table
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


def test_paths_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell; ./~ is a folder of that name."""
    monkeypatch.setenv("HOME", "/home/me")
    path = write(tmp_path, "path,text\n~/a.mp4,A cat\n./~/b.mp4,dog\nc~.mp4,bird\n")
    expected = ["/home/me/a.mp4", str(tmp_path / "~/b.mp4"), str(tmp_path / "c~.mp4")]
    assert [row.path for row in read_manifest(path).rows] == expected
    assert [cells["path"] for _, cells in readable_rows(read_table(path))[0]] == expected


def test_byte_order_mark_and_spaces_in_the_header(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfpath, text\r\na.mp4,ein K\xc3\xa4fer\r\n")
    assert [row.text for row in read_manifest(path).rows] == ["ein Käfer"]


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.jsonl"])
def test_missing_column(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    write_table(path, [{"file": "a.mp4", "text": "x"}])
    with pytest.raises(DataError, match=rf"{name}: .*column.*'path'.*'file', 'text'.*'path', 'text'"):
        read_manifest(path)


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"train\.\w+: .*column.*'path', 'text'.*none|train\.jsonl: .*none"):
        read_manifest(write(tmp_path, "", name))


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
        (lambda path: path.mkdir(), "found a folder without tables; allowed: files that end in .csv"),
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
    kept = [0, 1, 11, 14, 15, 16, 20, 23]
    assert [row.index for row in csv.rows] == kept
    assert [row.text for row in csv.rows][-2:] == ["007", "a \0 byte, \ufeff mark"]
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


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.jsonl"])
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
        ([{"a": 1}], pyarrow.struct([("a", pyarrow.int64())]), r"column 'text' holds struct<.*>, which is no text"),
    ],
    ids=["lists", "structs"],
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


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.jsonl"])
def test_words_and_characters_that_stand_for_an_empty_cell(tmp_path: Path, name: str) -> None:
    words = ["nan", "NaN", "None", "null", "N/A", "<NA>", " NA ", "\u200b", "\ufeff\u200d", "\x01", "\u3000"]
    captions = ["a nan", "none of it", "\u200bcat", "红", "\u0301", "\U0001f600", "a", "-", "0"]
    rows = [{"path": f"{n}.mp4", "text": text} for n, text in enumerate(words + captions)]
    rows += [{"path": word, "text": "x"} for word in words]
    write_table(str(tmp_path / name), rows)
    manifest = read_manifest(str(tmp_path / name), block_rows=7)
    assert [row.text for row in manifest.rows] == captions
    assert [row.reason for row in manifest.dropped if row.reason != "empty path"] == ["empty caption"] * len(words)
    assert len(manifest.dropped) == 2 * len(words)
    assert "the caption is 'NaN', which programs write for an empty cell" in manifest.dropped[1].message


def test_nan_among_captions_of_a_parquet(tmp_path: Path) -> None:
    rows = [{"path": f"{n}.mp4", "text": value} for n, value in enumerate([float("nan"), None, 7.0, 0.5])]
    manifest = read_manifest(write_parquet(tmp_path, rows))
    assert [row.text for row in manifest.rows] == ["7", "0.5"]
    assert [row.reason for row in manifest.dropped] == ["empty caption"] * 2
    none = pyarrow.table({"path": ["a.mp4"], "text": pyarrow.nulls(1)})
    pyarrow.parquet.write_table(none, str(tmp_path / "none.parquet"))
    assert [row.reason for row in read_manifest(str(tmp_path / "none.parquet")).dropped] == ["empty caption"]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1e1", 10.0), (" 10 ", 10.0), ("10.0", 10.0), ("N/A", None), ("None", None), ("<NA>", None),
        ("1,5", "bad"), ("0x10", "bad"), ("True", "bad"), ("inf", "bad"), ("-3", "bad"), ("10 s", "bad"), ("00:10", "bad"),
    ],
)  # fmt: skip
def test_odd_numbers(tmp_path: Path, cell: str, value: float | str | None) -> None:
    manifest = read_manifest(write(tmp_path, f'path,text,end\na.mp4,x,"{cell}"\n'))
    assert [row.end for row in manifest.rows] == ([] if value == "bad" else [value])
    assert [row.reason for row in manifest.dropped] == (["bad number"] if value == "bad" else [])


@pytest.mark.parametrize(
    ("kind", "values", "numbers"),
    [
        (pyarrow.bool_(), [True, None], [None]),
        (pyarrow.decimal128(10, 2), [Decimal("17.00"), None], [17, None]),
        (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), ["17", "N/A"], [17, None]),
        (pyarrow.float32(), [17.0, float("nan")], [17, None]),
        (pyarrow.uint64(), [2**63, None], [2**31 - 1, None]),
        (pyarrow.timestamp("s"), [datetime(2024, 1, 1), None], [None]),
        (pyarrow.string(), ["17", ""], [17, None]),
        (pyarrow.list_(pyarrow.int64()), [[17], None], [None]),
    ],
)
def test_numbers_of_odd_types(tmp_path: Path, kind: Any, values: list[Any], numbers: list[Any]) -> None:
    """A value that is no number drops its row; an empty cell is one whatever the type."""
    table = pyarrow.table({"path": ["a", "b"], "text": ["x", "y"], "num_frames": pyarrow.array(values, kind)})
    pyarrow.parquet.write_table(table, str(tmp_path / "train.parquet"))
    assert [row.num_frames for row in read_manifest(str(tmp_path / "train.parquet")).rows] == numbers


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.large_string(),
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
    ],
)
def test_texts_of_odd_types(tmp_path: Path, kind: Any) -> None:
    as_bytes = "binary" in str(kind)
    texts = ["ein Käfer", None, " y "]
    values = pyarrow.array([text.encode() if as_bytes and text else text for text in texts], kind)
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a", "b", "c"], "text": values}), str(tmp_path / "t.parquet"))
    assert [row.text for row in read_manifest(str(tmp_path / "t.parquet")).rows] == ["ein Käfer", "y"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.binary()])
def test_parquet_cell_that_is_not_utf8(tmp_path: Path, kind: Any) -> None:
    values = pyarrow.array([b"x", b"caf\xe9", None, b"y"], pyarrow.binary()).view(kind)
    table = pyarrow.table({"path": ["a", "b", "c", "d"], "text": values})
    pyarrow.parquet.write_table(table, str(tmp_path / "t.parquet"))
    manifest = read_manifest(str(tmp_path / "t.parquet"))
    assert [row.text for row in manifest.rows] == ["x", "y"]
    assert [row.reason for row in manifest.dropped] == ["not UTF-8", "empty caption"]
    assert ".parquet:2: column 'text' is not UTF-8" in manifest.dropped[0].message


def test_path_with_a_null_byte(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, "path,text\na\0.mp4,x\n\0\0\0\0\nb.mp4,y\n"))
    assert [row.text for row in manifest.rows] == ["y"]
    assert [row.reason for row in manifest.dropped] == ["empty path", "bad path"]


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.jsonl"])
def test_columns_that_are_almost_named_right(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    row = {"path": "a.mp4", "text": "x", "Start": 1, "num frames": 2, "FPS": 3, "fps": 4, "height_cm": 5}
    write_table(path, [row])
    manifest = read_manifest(path)
    assert [note.split("column ")[1].split(";")[0] for note in manifest.notes] == [
        "'Start' is not read",
        "'num frames' is not read",
    ]
    assert f"  note: {manifest.notes[0]}" in Report.of(path, 1, [], notes=manifest.notes).lines()
