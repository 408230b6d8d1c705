"""One input, what is right for it and what the project makes of it."""

import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from opensora.cli.main import main
from opensora.parallel import world
from tests.support.command import ROOT, SAMPLE, TRAIN


@dataclass(frozen=True)
class Outcome:
    """Of a command: its exit code and all that it printed and logged."""

    code: int
    text: str

    def has(self, *words: str) -> str:
        """A short text for the table: the exit code, and the words that the command did not write."""
        missing = [word for word in words if word not in self.text]
        traceback = ", a traceback" if "Traceback" in self.text else ""
        return f"exit {self.code}" + (f", without {missing} in: {self.text[-800:]}" if missing else "") + traceback


class Workbench:
    """The tools of a case: an empty folder, and commands called inside this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self._monkeypatch = folder, monkeypatch

    def inside(self, folder: Path) -> None:
        """Make `folder` the working directory until the case ends."""
        self._monkeypatch.chdir(folder)

    def environment(self, name: str, value: str) -> None:
        """Set an environment variable until the case ends."""
        self._monkeypatch.setenv(name, value)

    def opensora(self, *arguments: str) -> Outcome:
        """`opensora ARGUMENTS` as the console script runs it."""
        return self._run(lambda: main(arguments))

    def tool(self, run: Callable[[list[str]], int | None], *arguments: object) -> Outcome:
        """A tool by the function that its module runs as a command."""
        return self._run(lambda: run([str(argument) for argument in arguments]))

    def train(
        self, data: Path | str, *overrides: str, num_frames: int = 5, steps: int = 1, command: str = "train"
    ) -> Outcome:
        """Train the debug model on a manifest, 16x16 pixels, in `folder/run`; or `check` that run."""
        dataset = {
            "_delete_": True,
            "type": "VideoTextDataset",
            "data_path": str(data),
            "num_frames": num_frames,
            "image_size": (16, 16),
        }
        options = [f"run_dir={self.folder / 'run'}", f"steps={steps}", "plugin=ddp", "ema_decay=none", *overrides]
        return self.opensora(command, str(ROOT / TRAIN), f"dataset={dataset!r}", *options)

    def sample(self, run_dir: Path, save_dir: Path | str, *arguments: str) -> Outcome:
        """Sample from a run of the debug model."""
        return self.opensora("sample", str(ROOT / SAMPLE), f"load={run_dir}", f"save_dir={save_dir}", *arguments)

    def _run(self, command: Callable[[], int | None]) -> Outcome:
        text = io.StringIO()
        log = logging.StreamHandler(text)
        logging.getLogger().addHandler(log)
        try:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                code = command() or 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 1
        finally:
            logging.getLogger().removeHandler(log)
            world.shutdown()
        return Outcome(code, text.getvalue())


@dataclass(frozen=True)
class OddInput:
    """A case: `measure` makes the input in the workbench's folder and returns what the project reads, says or writes."""

    name: str
    expected: object
    measure: Callable[[Workbench], object]

    def __str__(self) -> str:
        return self.name


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Lines of the columns case, expected, got; long cells are cut to 60 characters."""
    cells = [tuple(cell if len(cell) <= 60 else cell[:57] + "..." for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
