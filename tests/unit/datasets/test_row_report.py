import pytest
from rich.console import Console

from opensora.datasets.row_report import Dropped, Report
from opensora.errors import DataError


@pytest.fixture
def report() -> Report:
    dropped = [Dropped("empty caption", f"a.csv:{line}: the caption is empty") for line in range(2, 7)]
    return Report.of("a.csv", 3, [*dropped, Dropped("too short", "a.csv:9: has 1 frame")], {"4x8x8": 3})


def test_lines(report: Report) -> None:
    lines = report.lines()
    assert lines[0] == "a.csv: 9 rows in, 3 kept, 6 dropped"
    assert "  4x8x8: 3 clips" in lines
    assert "  dropped, empty caption: 5" in lines
    assert "    a.csv:2: the caption is empty" in lines
    assert "    ... and 2 more" in lines
    assert lines[-1] == "    a.csv:9: has 1 frame"


def test_table(report: Report) -> None:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.table())
    text = capture.get()
    for words in ("a.csv:2: the caption", "dropped: too short", "... and 2 more", "4x8x8: 3 clips"):
        assert words in text


def test_require_rows(report: Report) -> None:
    report.require_rows()
    with pytest.raises(DataError, match=r"row.* 0"):
        Report("a.csv", 0, 0).require_rows()
