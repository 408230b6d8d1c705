"""The filter: conditions, presets, balanced choice, and the counts that it prints."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
import pytest

from opensora.datasets.table import read_table, write_table
from tools.datasets.filter import main, preset_conditions
from tools.datasets.filter_presets import PRESETS

pytest.importorskip("duckdb")


def manifest(folder: Path, rows: list[dict[str, Any]], name: str = "in.csv") -> str:
    path = str(folder / name)
    write_table(path, [{"path": f"{number}.mp4", **row} for number, row in enumerate(rows)])
    return path


def numbers(path: Path) -> list[int]:
    """Numbers of the rows that are left."""
    return [int(Path(str(row["path"])).stem) for row in read_table(str(path)).rows]


def test_conditions_and_their_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"aes": aes, "flow": flow} for aes, flow in ((6, 1), (4, 9), (None, 9), (7, 9), (4, 1))]
    out = tmp_path / "out.csv"
    code = main([manifest(tmp_path, rows), str(out), "--keep", "aes > 5", "--keep", "flow > 5"])
    assert (code, numbers(out)) == (0, [3])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["all", "rows", "5"],
        ["aes", ">", "5", "3", "3", "2", "1"],
        ["flow", ">", "5", "2", "1", "1", "0"],
    ]


def test_paths_and_cells_stay_true(tmp_path: Path) -> None:
    """The output in another folder names the same files; leading zeros, quotes and line breaks stay."""
    odd = [{"id": "007", "text": 'a "b",\nc', "aes": 1.5}, {"id": "010", "text": "-x;rm 😀", "aes": 2}]
    source = manifest(tmp_path, odd)
    assert main([source, str(tmp_path / "sub/out.csv"), "--keep", "aes < 2"]) == 0
    assert read_table(str(tmp_path / "sub/out.csv")).rows == [
        {"path": f"{tmp_path}/0.mp4", "id": "007", "text": 'a "b",\nc', "aes": "1.5"}
    ]
    assert main([str(tmp_path / "sub/out.csv"), str(tmp_path / "back.jsonl"), "--keep", "true"]) == 0
    assert (tmp_path / "back.jsonl").read_text() == (
        '{"path": "0.mp4", "id": "007", "text": "a \\"b\\",\\nc", "aes": 1.5}\n'
    )


def test_balance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At most N rows of each value, the same ones for one seed, in the order of the table."""
    kinds = ["pan"] * 50 + ["zoom"] * 30 + ["static"] * 3 + [None] * 20
    source = manifest(tmp_path, [{"cmotion": kind, "aes": 5} for kind in kinds])
    chosen = []
    for seed in ("1", "1", "2"):
        out = tmp_path / "out.csv"
        assert main([source, str(out), "--balance", "cmotion", "--per-value", "10", "--seed", seed]) == 0
        chosen.append(numbers(out))
        assert Counter(kinds[number] for number in chosen[-1]) == {"pan": 10, "zoom": 10, "static": 3, None: 10}
        assert chosen[-1] == sorted(chosen[-1])
    assert chosen[0] == chosen[1] != chosen[2]
    assert capsys.readouterr().out.splitlines()[2].split() == ["balance", "70", "70", "33", "20"]


def test_balance_after_conditions(tmp_path: Path) -> None:
    source = manifest(tmp_path, [{"aes": number / 10} for number in range(100)])
    out = tmp_path / "out.parquet"
    words = ["--keep", "aes >= 5", "--balance", "floor(aes)", "--per-value", "3"]
    assert main([source, str(out), *words]) == 0
    assert Counter(number // 10 for number in numbers(out)) == dict.fromkeys(range(5, 10), 3)


def test_preset_uses_the_columns_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"num_frames": 96, "fps": 24, "height": 720, "width": 1280, "AES": 6},
        {"num_frames": 24, "fps": 24, "height": 720, "width": 1280, "AES": 6},  # a second
        {"num_frames": 1, "fps": "", "height": 720, "width": 1280, "AES": 6},  # an image
        {"num_frames": 96, "fps": 12, "height": 720, "width": 1280, "AES": 6},
        {"num_frames": 96, "fps": 24, "height": 300, "width": 1000, "AES": 6},
        {"num_frames": 96, "fps": 24, "height": 720, "width": 1280, "AES": 4.6},
    ]
    source, out = manifest(tmp_path, rows), tmp_path / "out.csv"
    left = {}
    for name in PRESETS:
        assert main([source, str(out), "--preset", name]) == 0
        left[name] = numbers(out)
    assert left == {"pretrain": [0, 2, 5], "high_quality": [0, 2], "final": [0, 2]}
    printed = capsys.readouterr()
    assert "skipped: duplicate_of IS NULL: no column duplicate_of; tools.dedupe makes it" in printed.err
    assert "num_frames = 1 OR fps >= 16" in printed.out
    assert "duplicate_of" not in printed.out


def test_presets_are_valid_expressions(tmp_path: Path) -> None:
    columns = {column: 1.0 for each in PRESETS.values() for condition in each for column in condition.columns}
    source = manifest(tmp_path, [columns | {"text": "a dog on a beach", "duplicate_of": ""}])
    for name, conditions in PRESETS.items():
        assert preset_conditions(name, ["path", *columns]) == (conditions, [])
        assert main([source, str(tmp_path / "out.csv"), "--preset", name, "--dry-run"]) == 0
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--keep", "aess > 5"], 2, 'aess" not found'),
        (["--keep", "CAST(path AS INT) > 5"], 2, "fails on a row: Could not convert string '0.mp4' to INT32"),
        (["--keep", "aes > 0 OR error('no ' || path)"], 2, "fails on a row: no 0.mp4"),
        (["--keep", "aes > 50"], 1, "not written, no row of 2 is left; 'aes > 50' removes most, 2"),
        ([], 2, "no condition; allowed: --keep, --preset, --balance"),
        (["--balance", "aes"], 2, "--per-value None; allowed: both"),
        (["--balance", "aes", "--per-value", "0"], 2, "--per-value 0; allowed: both, with 1 row or more"),
        (["--preset", "final"], 2, "has no column that it needs; columns: path, aesthetics"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str) -> None:
    column = "aesthetics" if "--preset" in words else "aes"
    out = tmp_path / "out.csv"
    assert main([manifest(tmp_path, [{column: 4}, {column: 6}]), str(out), *words]) == code
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_output_must_be_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([manifest(tmp_path, [{"aes": 4}]), str(tmp_path / "out.xlsx"), "--keep", "true"]) == 2
    assert "out.xlsx'; allowed: a name that ends in .csv" in capsys.readouterr().err


def test_lists_and_queries_in_conditions_keep_the_order(tmp_path: Path) -> None:
    """DuckDB makes joins of them, which change the order of the rows."""
    rows, folder = 200_000, tmp_path / "shards"
    folder.mkdir()
    for part in range(2):
        numbers = pyarrow.array(range(part * rows, (part + 1) * rows))
        table = pyarrow.table({"n": numbers, "path": pyarrow.compute.cast(numbers, pyarrow.string())})
        pyarrow.parquet.write_table(table, folder / f"{part}.parquet", row_group_size=20_000)
    out = tmp_path / "out.parquet"
    words = [
        "--keep",
        f"n % 100 IN ({', '.join(map(str, range(40)))})",
        "--keep",
        "n % 100 IN (SELECT n * 3 FROM manifest)",
    ]
    assert main([str(folder), str(out), *words]) == 0
    expected = [n for n in range(2 * rows) if n % 100 < 40 and n % 100 % 3 == 0]
    assert pyarrow.parquet.read_table(out)["n"].to_pylist() == expected


def test_any_cell_passes_through_every_format(tmp_path: Path) -> None:
    """Quotes, line breaks, blanks, control characters, formulas, words for empty cells: as they were, in every format."""
    rng = random.Random(0)
    pieces = [
        '"',
        "'",
        ",",
        ";",
        "\n",
        "\r",
        "\r\n",
        "\t",
        " ",
        "=1+1",
        "-x",
        "😀",
        "é",
        "\\",
        "NULL",
        "nan",
        "\x01",
        "a",
    ]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 6))) + "." for _ in range(300)]
    source = manifest(tmp_path, [{"text": text, "aes": number} for number, text in enumerate(texts)])
    for name in ("1.parquet", "2.jsonl", "3.csv", "4.parquet"):
        assert main([source, str(tmp_path / name), "--keep", "aes >= 0"]) == 0
        source = str(tmp_path / name)
    assert pyarrow.parquet.read_table(source)["text"].to_pylist() == texts
    assert [row["text"] for row in read_table(str(tmp_path / "3.csv")).rows] == texts
