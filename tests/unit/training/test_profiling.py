"""The steps that a trace holds, and its place in the run's folder."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.platforms import select
from opensora.platforms.cpu import CpuPlatform
from opensora.training.profiling import StepTrace


class Diary(CpuPlatform):
    """Notes when it records."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def profile(self, folder: Path, name: str) -> Iterator[Any]:
        self.notes.append(f"start {folder.name}/{name}")
        try:
            yield None
        finally:
            self.notes.append("written")

    def synchronize(self) -> None:
        self.notes.append("wait")


def walk(count: int, steps: range, leave_after: int | None = None) -> list[str]:
    diary = Diary()
    for step in StepTrace(count, diary, Path("profile"), "rank0")(steps):
        diary.notes.append(str(step))
        if step == leave_after:
            break
    return diary.notes


@pytest.mark.parametrize(
    ("count", "steps", "leave", "expected"),
    [
        (0, range(2), None, ["0", "1"]),
        (2, range(4), None, ["0", "start profile/rank0", "1", "2", "wait", "written", "3"]),
        (1, range(7, 10), None, ["7", "start profile/rank0", "8", "wait", "written", "9"]),
        (5, range(3), None, ["0", "start profile/rank0", "1", "2", "wait", "written"]),
        (5, range(9), 1, ["0", "start profile/rank0", "1", "wait", "written"]),
        (2, range(1), None, ["start profile/rank0", "0", "wait", "written"]),
        (2, range(0), None, []),
    ],
)
def test_which_steps_are_recorded(count: int, steps: range, leave: int | None, expected: list[str]) -> None:
    assert walk(count, steps, leave) == expected


def test_a_trace_of_the_host_can_be_read(tmp_path: Path) -> None:
    x = torch.ones(4, 4)
    for _ in StepTrace(2, select("cpu"), tmp_path / "profile", "rank0")(range(4)):
        x = x @ x
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name.startswith("rank0.")
    with gzip.open(file) as stream:
        events = [event.get("name") for event in json.load(stream)["traceEvents"]]
    assert events.count("aten::mm") == 2
    assert {"optimizer step 2", "optimizer step 3"} <= set(events)
    assert "optimizer step 1" not in events
