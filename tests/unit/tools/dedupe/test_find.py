"""Duplicates within and across tables: marked, ranked and left out."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from opensora.datasets.table import read_table, write_table
from opensora.errors import DataError
from tools.dedupe import find as find_module
from tools.dedupe import sources
from tools.dedupe.find import main
from tools.history import read_history

RNG = np.random.default_rng(0)
A, B, C = (RNG.bytes(64).hex() for _ in range(3))
A_NEAR = f"{int(A, 16) ^ (1 << 500 | 1 << 40 | 1):0128x}"
BLACK = "0" * 128


def clip(path: str, exact: str | None, near: str | None, **cells: Any) -> dict[str, Any]:
    frame_hash = exact and f"{int(exact, 16):032x}"
    return {"path": path, "frame_hash": frame_hash, "perceptual_hash": near, **cells}


ROWS = [
    clip("small.mp4", "a1", A, height=90, width=160),
    clip("large.mp4", "a2", A_NEAR, height=720, width=1280),
    clip("other.mp4", "b1", B, height=90, width=160),
    clip("small-again.mp4", "a1", A, height=90, width=160),
    clip("black.mp4", "c1", BLACK, height=90, width=160),
    clip("dark.mp4", "c2", BLACK, height=90, width=160),
    clip("unknown.mp4", None, None, height=90, width=160),
]
MARKS = {
    "small.mp4": ("large.mp4", "near", 3),
    "large.mp4": (None, None, 1),
    "small-again.mp4": ("large.mp4", "near", 2),
}


def marks(path: Path) -> dict[str, tuple[Any, ...]]:
    rows = read_table(str(path)).rows
    cells = [[row.get(name) or None for name in ("duplicate_of", "duplicate_kind", "quality_rank")] for row in rows]
    return {row["path"]: (of, kind, rank and int(rank)) for row, (of, kind, rank) in zip(rows, cells) if rank}


@pytest.fixture(params=["parquet", "csv"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"in.{request.param}"
    write_table(str(path), ROWS)
    return path


def test_duplicates_are_marked_with_the_best_one(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.with_stem("out")
    assert main([str(table), str(out)]) == 0
    assert [row["path"] for row in read_table(str(out)).rows] == [row["path"] for row in ROWS]
    assert marks(out) == MARKS
    assert capsys.readouterr().err.endswith(
        "out" + table.suffix + ": 7 rows; duplicates: 0 exact, 2 near, 0 semantic\n"
    )


def test_the_output_says_what_made_it(table: Path) -> None:
    out = table.with_stem("out")
    assert main([str(table), str(out), "--distance", "7"]) == 0
    [step] = read_history(str(out))
    assert (step["tool"], step["arguments"]["distance"]) == ("tools.dedupe.find", 7.0)
    assert [each["path"] for each in step["inputs"]] == [str(table)]


def test_only_the_kinds_that_are_named_count(table: Path) -> None:
    out = table.with_stem("out")
    assert main([str(table), str(out), "--by", "exact"]) == 0
    assert marks(out) == {"small-again.mp4": (None, None, 1), "small.mp4": ("small-again.mp4", "exact", 2)}


def test_dropped_rows_are_the_marked_ones(table: Path) -> None:
    out = table.with_stem("out")
    assert main([str(table), str(out), "--drop"]) == 0
    assert [row["path"] for row in read_table(str(out)).rows] == [
        "large.mp4",
        "other.mp4",
        "black.mp4",
        "dark.mp4",
        "unknown.mp4",
    ]


def test_the_order_of_rows_has_no_influence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_ROWS_AT_ONCE", 2)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(ROWS))
        write_table(str(tmp_path / "in.parquet"), [ROWS[number] for number in order])
        assert main([str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]) == 0
        assert marks(tmp_path / "out.parquet") == MARKS


@pytest.mark.parametrize(
    ("columns", "best"),
    [
        ({"quality": (0.2, 0.1), "height": (10, 90), "width": (10, 90)}, 0),
        ({"quality": (None, 0.1), "height": (90, 10), "width": (90, 10)}, 1),
        ({"height": (90, 91), "width": (90, 90), "bitrate": (9, 1)}, 1),
        ({"height": (90, 90), "width": (90, 90), "bitrate": (9, 1), "num_frames": (1, 9)}, 0),
        ({"bitrate": (1, 1), "num_frames": (1, 9)}, 1),
        ({}, 0),  # by name
    ],
)
def test_the_best_one_is_kept(columns: dict[str, tuple[Any, Any]], best: int, tmp_path: Path) -> None:
    rows = [clip(name, "1", A, **{key: two[at] for key, two in columns.items()}) for at, name in enumerate("ab")]
    write_table(str(tmp_path / "in.csv"), rows)
    assert main([str(tmp_path / "in.csv"), str(tmp_path / "out.csv")]) == 0
    assert marks(tmp_path / "out.csv")["ab"[best]] == (None, None, 1)
    assert marks(tmp_path / "out.csv")["ba"[best]] == ("ab"[best], "exact", 2)


def test_another_column_may_rank(tmp_path: Path) -> None:
    rows = [clip("a", "1", A, quality=9, aes=1.0), clip("b", "1", A, quality=1, aes=2.0)]
    write_table(str(tmp_path / "in.parquet"), rows)
    assert main([str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "--quality", "aes"]) == 0
    assert marks(tmp_path / "out.parquet") == {"a": ("b", "exact", 2), "b": (None, None, 1)}


def test_shards_are_searched_together_and_stay_shards(tmp_path: Path) -> None:
    write_table(str(tmp_path / "in" / "x.parquet"), ROWS[:1])
    write_table(str(tmp_path / "in" / "y.parquet"), [{**row, "extra": 1} for row in ROWS[1:3]])
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert marks(tmp_path / "out" / "y.parquet") == {str(tmp_path / "in" / "large.mp4"): (None, None, 1)}
    large = str(tmp_path / "in" / "large.mp4")
    assert marks(tmp_path / "out" / "x.parquet") == {str(tmp_path / "in" / "small.mp4"): (large, "near", 2)}
    assert main([str(tmp_path / "in"), str(tmp_path / "one.parquet")]) == 0
    rows = read_table(str(tmp_path / "one.parquet")).rows
    assert [(row["path"], row["extra"]) for row in rows] == [
        ("in/small.mp4", None),
        ("in/large.mp4", 1),
        ("in/other.mp4", 1),
    ]
    assert rows[0]["duplicate_of"] == "in/large.mp4"


def test_clips_of_a_reference_are_kept_and_not_written(tmp_path: Path) -> None:
    write_table(str(tmp_path / "old" / "in.csv"), ROWS[:1])
    write_table(str(tmp_path / "new.parquet"), ROWS[1:3])
    assert main([str(tmp_path / "new.parquet"), str(tmp_path / "out.parquet"), "--against", str(tmp_path / "old")]) == 0
    assert len(read_table(str(tmp_path / "out.parquet")).rows) == 2
    assert marks(tmp_path / "out.parquet") == {"large.mp4": ("old/small.mp4", "near", 2)}


def test_vectors_join_clips_that_no_hash_joins(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed; run pip install -e '.[tools]'")
    vectors = {"small.mp4": [1.0, 0.0, 0.0], "large.mp4": [0.0, 1.0, 0.0], "other.mp4": [0.99, 0.01, 0.0]}
    rows = [{**row, "embedding": vectors.get(row["path"])} for row in ROWS]
    for name in ("in.parquet", "in.csv"):
        write_table(str(tmp_path / name), rows)
        out = tmp_path / f"out.{name}"
        assert main([str(tmp_path / name), str(out)]) == 0
        near = {name: ("large.mp4", "near", rank) for name, rank in (("small-again.mp4", 3), ("small.mp4", 4))}
        assert marks(out) == MARKS | near | {"other.mp4": ("large.mp4", "semantic", 2)}


def test_a_second_run_replaces_the_columns(tmp_path: Path) -> None:
    write_table(str(tmp_path / "in.parquet"), ROWS)
    assert main([str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), "--by", "exact"]) == 0
    assert main([str(tmp_path / "out.parquet"), str(tmp_path / "out.parquet")]) == 0
    assert marks(tmp_path / "out.parquet") == MARKS
    names = pyarrow.parquet.read_schema(tmp_path / "out.parquet").names
    assert len(names) == len(set(names)) == len(ROWS[0]) + 3


@pytest.mark.parametrize(
    ("rows", "flags", "code", "message"),
    [
        ([{"path": "a"}], [], 1, "in.csv: no column frame_hash, perceptual_hash, embedding; it is needed"),
        ([{"path": "a"}], ["--by", "near"], 1, "in.csv: no column perceptual_hash; .* run tools.dedupe.fingerprint"),
        ([{"name": "a"}], [], 1, "in.csv: no column 'path'"),
        ([clip("a", "1", A), clip("b", "1", A[:64])], [], 1, "perceptual_hash: '.*' is no hash like the others"),
        (ROWS, ["--quality", "aes"], 1, "no column 'aes' for --quality; found path, "),
        ([{**ROWS[0], "quality": "good"}, ROWS[1]], [], 1, "in.csv: quality: .*good"),
        (ROWS, ["--distance", "40"], 2, "--distance 40.0 .*allowed: a distance from 0 to 31"),
        (ROWS, ["--similarity", "0"], 2, "a cosine above 0"),
        (ROWS, ["{0}", "a.txt"], 2, "a.txt"),
    ],
)
def test_mistakes_are_sentences(
    rows: list[dict[str, Any]],
    flags: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_table(str(tmp_path / "in.csv"), rows)
    words = [each.format(tmp_path / "in.csv") for each in flags]
    assert main([str(tmp_path / "in.csv"), str(tmp_path / "out.csv"), *words]) == code
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_shards_of_other_frames_are_refused(tmp_path: Path) -> None:
    write_table(str(tmp_path / "a.parquet"), [clip("a", "1", A)])
    write_table(str(tmp_path / "b.parquet"), [clip("b", "1", A[:64])])
    with pytest.raises(DataError, match=r"b\.parquet: perceptual_hash: a row has 4 numbers, rows before it have 8"):
        find_module.find([str(tmp_path)], str(tmp_path / "out.parquet"), find_module.Settings())
