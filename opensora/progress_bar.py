"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class ProgressBar:
    """Use it in a `with` statement, or call `start` and `close`.

    completed: part of `total` that an earlier run did. visible: False on ranks that show no progress.
    lines: plain lines until `total` is reached; None = one per update. log: writes a plain line.
    """

    def __init__(
        self,
        title: str,
        total: float,
        *,
        completed: float = 0,
        visible: bool = True,
        lines: int | None = 10,
        log: Callable[[str], object] = _print,
    ):
        self.title = title
        self.total = total
        self.completed = completed
        self.visible = visible and total > 0
        self.lines = lines
        self.log = log
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started, self._before = time.monotonic(), completed

    def start(self) -> Self:
        self._started, self._before = time.monotonic(), self.completed
        if self.visible and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                ProgressColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
            columns += [MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=int(self.completed))
        return self

    __enter__ = start

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, completed: float, description: str | None = None, line: str = "") -> None:
        """Show that `completed` of `total` is done. description: text of the bar; line: the plain line."""
        before, self.completed = self.completed, completed
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=completed, description=description)
        elif self.visible and (self.lines is None or self._part(before) < self._part(completed)):
            self.log(line)

    def advance(self) -> None:
        """One more row is done."""
        done = self.completed + 1
        self.update(done, line=f"{self.title}: {done} of {self.total} rows")

    def time_left(self, completed: float) -> str:
        """Hours, minutes and seconds until `total` at the speed since the start, such as "0:12"; "" where nothing is done yet."""
        done = completed - self._before
        if done <= 0:
            return ""
        left = round((time.monotonic() - self._started) * (self.total - completed) / done)
        minutes, seconds = divmod(left, 60)
        return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"

    def print(self, message: str) -> None:
        """Print above the bar; without a bar to stderr, on every rank."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            _print(message)

    def _part(self, completed: float) -> int:
        return int(completed * (self.lines or 0) / self.total)
