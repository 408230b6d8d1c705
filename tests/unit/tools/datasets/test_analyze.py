"""The report of a table."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.table import write_table
from tools.datasets.analyze import charts, main, tenths
from tools.datasets.database import Database

pytest.importorskip("duckdb")


def table(folder: Path, rows: int = 40) -> str:
    """Pictures whose brightness is their score; the last one is not there."""
    lines: list[dict[str, Any]] = []
    for number in range(rows):
        path = f"clips/{number}.png"
        (folder / "clips").mkdir(exist_ok=True)
        if number < rows - 1:
            Image.fromarray(np.full((9, 16, 3), 5 * number, np.uint8)).save(folder / path)
        caption = f"<b>clip</b> $x$ & {number} 😀"
        kind = "pan_left" if number % 3 else "static"
        line = {
            "path": path,
            "text": caption,
            "aes": number / 10,
            "num_frames": 24,
            "fps": 12,
            "height": 9,
            "cmotion": kind,
        }
        lines.append(line)
    write_table(str(folder / "in.csv"), lines)
    return str(folder / "in.csv")


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([table(tmp_path), str(tmp_path / "report"), "--examples", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == f"{tmp_path}/report/index.html"
    assert "1 examples cannot be read, the first: " in printed.err
    page = (tmp_path / "report/index.html").read_text()
    pictures = re.findall(r'src="([^"]+)"', page)
    assert pictures == ["scores.png", "lengths-and-sizes.png", "captions.png", "kinds.png", "examples.png"]
    sizes = [Image.open(tmp_path / "report" / name).size for name in pictures]
    assert min(min(size) for size in sizes) > 200
    assert "<th>column</th>" in page
    assert "examples by aes" in page


def test_charts_of_the_columns(tmp_path: Path) -> None:
    with Database() as database:
        groups = charts(database, database.open(table(tmp_path)))
    assert {chart.title: [drawing.title for drawing in chart.drawings] for chart in groups} == {
        "scores": ["aes"],
        "lengths and sizes": ["seconds", "num_frames", "fps", "height"],
        "captions": ["characters of a caption", "words of a caption"],
        "kinds": ["cmotion"],
    }
    words = groups[2].drawings[1]
    assert (words.counts, words.edges) == ([40], [4.5, 5.5])  # type: ignore[union-attr]


def test_examples_come_from_their_tenth(tmp_path: Path) -> None:
    with Database() as database:
        rows = tenths(database, database.open(table(tmp_path)), "aes", 3, 0)
    for number, tenth in enumerate(rows):
        assert len(tenth.examples) == 3
        for example in tenth.examples:
            assert tenth.low <= example.value <= tenth.high
            assert int(example.value * 10 + 0.01) // 4 in (number, number + 1)
            if example.frame is not None:
                assert int(example.frame[0, 0, 0]) == round(example.value * 50)


def test_seconds_of_shots(tmp_path: Path) -> None:
    shots = [{"path": "a.mp4", "start": start, "end": start + 2, "num_frames": 500, "fps": 25} for start in (0, 2, 5)]
    write_table(str(tmp_path / "a.csv"), shots)
    with Database() as database:
        [sizes] = charts(database, database.open(str(tmp_path / "a.csv")))
    seconds = sizes.drawings[0]
    assert (seconds.title, seconds.counts) == ("seconds", [3])
    assert seconds.median == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--by", "aesthetics"], 2, "no column 'aesthetics'; columns: path, text, aes"),
        (["--by", "text"], 2, "--by text: holds VARCHAR; allowed: a column of numbers"),
        (["--examples", "-1"], 2, "allowed: a folder, 0 to 100 examples"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, says: str) -> None:
    assert main([table(tmp_path, 3), str(tmp_path / "report"), *words]) == code
    assert says in capsys.readouterr().err


def test_tables_without_scores_or_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(str(tmp_path / "a.csv"), [{"path": "a.mp4", "text": "", "aes": ""}])
    assert main([str(tmp_path / "a.csv"), str(tmp_path / "report")]) == 0
    assert "examples.png" not in (tmp_path / "report/index.html").read_text()
    (tmp_path / "b.csv").write_text("path,text\n")
    assert main([str(tmp_path / "b.csv"), str(tmp_path / "report")]) == 1
    assert "has no row; a report needs at least one" in capsys.readouterr().err
