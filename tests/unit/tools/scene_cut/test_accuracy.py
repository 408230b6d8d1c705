"""Recall and precision count each cut once."""

import json
from pathlib import Path

import pytest

from opensora.datasets.table import write_table
from opensora.errors import DataError
from tools.scene_cut.accuracy import CutAccuracy, cut_accuracy, main, read_cuts


@pytest.mark.parametrize(
    ("detected", "true", "expected", "recall", "precision"),
    [
        ([30, 76], [30, 76], CutAccuracy([30, 76], [], []), 1.0, 1.0),
        ([31, 75, 90], [30, 76, 137], CutAccuracy([30, 76], [137], [90]), 2 / 3, 2 / 3),
        ([10, 28, 29], [30], CutAccuracy([30], [], [10, 28]), 1.0, 1 / 3),
        ([29, 30, 31], [30], CutAccuracy([30], [], [30, 31]), 1.0, 1 / 3),
        ([32], [30], CutAccuracy([], [30], [32]), 0.0, 0.0),
        ([], [], CutAccuracy([], [], []), 1.0, 1.0),
        ([5], [], CutAccuracy([], [], [5]), 1.0, 0.0),
        ([], [5], CutAccuracy([], [5], []), 0.0, 1.0),
    ],
)
def test_accuracy(detected: list[int], true: list[int], expected: CutAccuracy, recall: float, precision: float) -> None:
    result = cut_accuracy(detected, true)
    assert result == expected
    assert (result.recall, result.precision) == (pytest.approx(recall), pytest.approx(precision))


def test_no_tolerance() -> None:
    assert cut_accuracy([31], [30], tolerance=0) == CutAccuracy([], [30], [31])


def test_lists_of_cuts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# film\n76\n30  # a door\n\n")
    write_table(str(tmp_path / "a.csv"), [{"path": "a.mp4", "start_frame": frame} for frame in (0, 30, 76)])
    assert read_cuts(str(tmp_path / "a.txt")) == read_cuts(str(tmp_path / "a.csv")) == [30, 76]
    (tmp_path / "a.txt").write_text("30\n1:20\n")
    with pytest.raises(DataError, match=r"a\.txt:2: found '1:20'"):
        read_cuts(str(tmp_path / "a.txt"))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes, true, out = (str(tmp_path / name) for name in ("scenes.csv", "cuts.txt", "new/cuts.json"))
    write_table(scenes, [{"path": "a.mp4", "start_frame": frame} for frame in (0, 31, 90)])
    Path(true).write_text("30\n76\n137\n")
    assert main([scenes, out, f"--true={true}"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 cuts: recall 0.3333, precision 0.5",
        "  missed: [76, 137]",
        "  no cuts: [90]",
    ]
    made = json.loads(Path(out).read_text())
    assert made == {"recall": 0.3333, "precision": 0.5, "hits": [30], "missed": [76, 137], "extra": [90]}
    assert main([scenes, out, "--true=none.txt"]) == 1
    assert "none.txt: cannot be read" in capsys.readouterr().err
    assert main([scenes, "out.csv", f"--true={true}"]) == 2
