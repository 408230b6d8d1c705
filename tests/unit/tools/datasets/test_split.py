"""Rows for training and for validation."""

from pathlib import Path

import pytest

from opensora.datasets.table import read_table
from tests.unit.tools.datasets.test_filter import manifest, numbers
from tools.datasets.split import main

pytest.importorskip("duckdb")


def test_clips_of_a_film_stay_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"source_path": f"films/{number // 5}.mp4"} for number in range(1000)]
    rows[7] = {"source_path": ""}  # goes by its own path
    train, validation = tmp_path / "train.csv", tmp_path / "sub/validation.csv"
    words = [str(train), "--validation", str(validation), "--share", "0.2"]
    assert main([manifest(tmp_path, rows), *words]) == 0
    sides = [numbers(train), numbers(validation)]
    assert sorted(sides[0] + sides[1]) == list(range(1000))
    assert [side == sorted(side) for side in sides] == [True, True]
    films = [{number // 5 for number in side if number != 7} for side in sides]
    assert not films[0] & films[1]
    assert 20 < len(films[1]) < 60
    assert (
        f"by source_path: {len(films[0])} films for training, {len(films[1])} for validation" in capsys.readouterr().err
    )
    assert read_table(str(validation)).rows[0]["source_path"].startswith(f"{tmp_path}/films/")
    # Further rows change nothing for those before.
    assert main([manifest(tmp_path, [*rows, {"source_path": "new.mp4"}]), *words]) == 0
    assert [number for number in numbers(train) if number < 1000] == sides[0]
    assert main([manifest(tmp_path, rows), *words, "--seed", "1"]) == 0
    assert numbers(train) != sides[0]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["t.csv", "--validation", "t.csv"], 2, "two outputs are one file"),
        (["t.csv", "--validation", "v.csv", "--by", "film"], 2, "no column 'film'; columns: path, x"),
        (["t.csv", "--validation", "v.csv", "--share", "1"], 2, "--share 1; allowed: above 0 and below 1"),
        (
            ["t.csv", "--validation", "v.csv", "--by", "x"],
            1,
            "validation has no row of 4: column 'x' has 1 different values",
        ),
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
    assert main([manifest(tmp_path, [{"x": 1}] * 4), *words]) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "t.csv").exists()
