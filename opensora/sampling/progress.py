"""How far sampling is: a rich bar on a terminal, plain lines elsewhere, both on stderr."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from opensora.log import logger

LINES = 4  # plain lines per batch of videos


class SamplingProgress:
    """Counts denoising steps over all batches of this rank; silent unless `visible`. `each` is called after every step."""

    def __init__(self, batches: int, visible: bool, each: Callable[[], object] = lambda: None):
        self.batches = batches
        self.each = each
        self.visible = visible and batches > 0
        self.batch = 0
        self.bar: Any = None
        if self.visible and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> "SamplingProgress":
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("sampling", total=self.batches)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, batch: int) -> None:
        """`batch` counts this rank's batches from 0."""
        self.batch = batch

    def step(self, done: int, steps: int) -> None:
        """Called by the scheduler after each of its `steps`."""
        self.each()
        if not self.visible:
            return
        text = f"batch {self.batch + 1} of {self.batches}, step {done} of {steps}"
        if self.bar is not None:
            self.bar.update(self.task, completed=self.batch + done / steps, description=text)
        elif done * LINES // steps > (done - 1) * LINES // steps:
            logger().info("sampling: %s", text)
