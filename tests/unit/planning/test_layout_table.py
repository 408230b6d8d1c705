"""The table of docs/planning.md is what its command prints."""

import re
from pathlib import Path

import pytest

from opensora.cli.check import table_command
from opensora.planning import layout_table
from tests.support.command import ROOT

DOCUMENT = Path(ROOT, "docs", "planning.md").read_text(encoding="utf-8")


def rows(text: str) -> list[str]:
    """Lines of the table: those that begin with a clip's size, and its head."""
    return [line for line in text.splitlines() if re.match(r"\| (\d+x\d+x\d+|clip) \|", line)]


def test_the_document_has_every_row() -> None:
    head, *lines = rows(DOCUMENT)
    assert head == f"| {' | '.join(layout_table.HEAD)} |"
    clips = ["x".join(map(str, clip)) for clip in layout_table.CLIPS]
    assert [row.split(" | ")[0].strip("| ") for row in lines] == [clip for clip in clips for _ in layout_table.WORLDS]


def test_the_document_says_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip that fits only with recomputation, so that both are rehearsed; all of them take minutes."""
    (line,) = [each for each in DOCUMENT.splitlines() if each.startswith("opensora check") and "--table" in each]
    _, _, config, gpu, flag = line.split()
    assert flag == "--table"
    monkeypatch.setattr(layout_table, "CLIPS", layout_table.CLIPS[1:2])
    assert table_command(str(ROOT / config), [gpu]) == 0
    head, *lines = rows(DOCUMENT)
    assert rows(capsys.readouterr().out) == [head, *lines[3:6]]
