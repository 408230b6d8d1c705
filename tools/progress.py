"""Progress of a tool on stderr: a bar on a terminal, otherwise a line per tenth of the work."""

import sys
from typing import Any


class Progress:
    """Use it in a `with` statement. shown: False for a process beside others of which one shows its progress."""

    def __init__(self, name: str, total: int, done: int = 0, shown: bool = True) -> None:
        self.name = name
        self.shown = shown
        self.total = total
        self.done = done
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if self.shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=self.total, completed=self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        before, self.done = self.done, self.done + 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif self.shown and before * 10 // self.total != self.done * 10 // self.total:
            self.say(f"{self.name}: {self.done} of {self.total} rows")

    def say(self, message: str) -> None:
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)
