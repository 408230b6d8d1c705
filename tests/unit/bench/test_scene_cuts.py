"""The script that compares detectors on a film."""

from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from bench.scene_cuts import disagreements, main
from tests.support.command import ROOT
from tests.unit.tools.scene_cut.test_detect import color_video
from tools.scene_cut.accuracy import read_cuts


def test_a_film_with_true_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, sheet = color_video(tmp_path / "a.mp4", 10, 12, 9), tmp_path / "sheet.png"
    (tmp_path / "true.txt").write_text("10\n20\n")
    arguments = [
        film,
        "--true",
        str(tmp_path / "true.txt"),
        "--pictures",
        str(sheet),
        "--detectors",
        "content",
        "threshold",
    ]
    assert main(arguments) == 0
    lines = capsys.readouterr().out
    assert "content: 2 cuts in 31 frames" in lines
    assert "content: recall 0.5000, precision 0.5000 of 2 true cuts\n  missed: [20]\n  no cuts: [22]" in lines
    assert "frame 10: content only\nframe 22: content only\n" in lines
    assert Image.open(sheet).size == (4 * 240, 2 * 120)


def test_disagreements() -> None:
    assert disagreements({"a": [10, 20, 30], "b": [11, 30, 50]}) == {20: ["a"], 50: ["b"]}
    assert disagreements({"a": [10]}) == {}


def test_the_list_of_a_film_is_read() -> None:
    cuts = read_cuts(str(ROOT / "bench" / "big_buck_bunny_cuts.txt"))
    assert (len(cuts), cuts[0], cuts[-1]) == (126, 285, 13942)
    assert min(after - before for before, after in pairwise(cuts)) >= 7
