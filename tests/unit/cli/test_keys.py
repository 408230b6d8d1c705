"""docs/config.md is what `opensora keys` prints."""

import dataclasses
from pathlib import Path

import pytest

from opensora.cli.keys import main, page
from opensora.schema import EvaluateRun, SampleRun, TrainRun

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


def test_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page() + "\n", "write it again: opensora keys > docs/config.md"


def test_every_key_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    fields = [field for run in (TrainRun, SampleRun, EvaluateRun) for field in dataclasses.fields(run)]
    rows = [line for line in lines if line.startswith("| `")]
    assert len(rows) == len(fields)
    assert all(field.metadata["doc"] for field in fields)
    assert "| `steps` | int | required | optimizer steps | length of the whole run | ✓ |" in lines
    assert "| `grad_clip` | float | `1.0` |  | largest global gradient norm; 0: no clipping |  |" in lines
