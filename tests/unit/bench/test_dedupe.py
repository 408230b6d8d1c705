"""The measurement of the search for duplicates."""

from typing import Any

import pytest
from rich.console import Console

from bench import dedupe
from bench.dedupe import measure, tables
from tools.dedupe.find import main


def test_a_tenth_of_the_rows_are_copies_that_the_search_marks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_tool(module: str, *arguments: str) -> tuple[float, int]:
        assert module == "tools.dedupe.find"
        assert main(arguments) == 0
        return 2.0, 1 << 20

    monkeypatch.setattr(dedupe, "run_tool", run_tool)
    results: dict[str, Any] = measure(3000)
    assert (results["copies"], results["rows"], results["duplicates"]["exact"]) == (300, 3000, 100)
    assert 180 <= results["duplicates"]["near"] <= 200
    machine = {"device": "a", "memory_gib": 1, "torch": "2", "date": "today"}
    for part in tables({**results, "machine": machine}):
        Console().print(part)
    assert "1,500" in capsys.readouterr().out  # rows per second
