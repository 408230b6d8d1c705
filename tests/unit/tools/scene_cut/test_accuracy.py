"""Recall and precision count each cut once."""

from pathlib import Path

import pytest

from opensora.datasets.table import write_table
from opensora.errors import DataError
from tools.scene_cut.accuracy import CutAccuracy, cut_accuracy, read_cuts


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
