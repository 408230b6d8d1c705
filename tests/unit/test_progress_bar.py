import sys

import pytest

from opensora.progress_bar import ProgressBar


def test_a_plain_line_per_tenth_of_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("cut", 30, completed=20) as bar:
        for _ in range(10):
            bar.advance()
        bar.print("skipped a row")
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [*(f"cut: {done} of 30 rows" for done in (21, 24, 27, 30)), "skipped a row"]
    assert captured.out == ""


def test_every_update_has_its_line_without_a_number_of_lines() -> None:
    lines: list[str] = []
    bar = ProgressBar("starting", 100, lines=None, log=lines.append)
    for step in (1, 2):
        bar.update(step, "loss 1.0", f"step {step}/100")
    assert lines == ["step 1/100", "step 2/100"]


def test_time_left_at_the_speed_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("opensora.progress_bar.time.monotonic", lambda: now[0])
    with ProgressBar("sampling", 10, completed=2) as bar:
        assert bar.time_left(2) == ""
        now[0] += 20
        assert bar.time_left(4) == "1:00"
        now[0] += 7200
        assert bar.time_left(6) == "2:00:20"


@pytest.mark.parametrize(("total", "visible"), [(3, False), (0, True)])
def test_invisible_bar_prints_messages_only(capsys: pytest.CaptureFixture[str], total: int, visible: bool) -> None:
    with ProgressBar("cut", total, visible=visible) as bar:
        bar.advance()
        bar.print("skipped a row")
    assert capsys.readouterr().err == "skipped a row\n"


def test_terminal_has_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar("cut", 4, lines=None) as bar:
        bar.update(3, "loss 0.5", "a plain line")
        bar.print("skipped [a] row")
    text = capsys.readouterr().err
    assert "loss 0.5" in text
    assert "3/4" in text
    assert "skipped [a] row" in text
    assert "a plain line" not in text
