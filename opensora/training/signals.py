"""Stopping on request: SIGTERM, Ctrl-C and Slurm's SIGUSR1 finish the step, save and exit 0."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A request to stop this process; the loop reads it once per step and agrees over all ranks."""

    def __init__(self, announces: bool = False) -> None:
        """announces: say on stderr what a signal leads to."""
        self.step: int | None = None  # in progress, counted from 1; None: none has begun
        self._announces = announces
        self._signaled = False
        self._conditions: list[Callable[[], bool]] = []

    def listen(self) -> Self:
        """From now on the signals request a stop instead of ending the process."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        return self

    @property
    def requested(self) -> bool:
        """True after a signal, and while one of the conditions holds."""
        return self._signaled or any(holds() for holds in self._conditions)

    def also_when(self, holds: Callable[[], bool]) -> None:
        """Stop as well once `holds()` is true on a rank."""
        self._conditions.append(holds)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signaled and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C stops at once
        if self._announces and not self._signaled:
            step = "the first step" if self.step is None else f"step {self.step}"
            again = "; again to stop at once" if number == signal.SIGINT else ""
            # not through sys.stderr or the log, which the signal may have interrupted in the middle of a line
            os.write(2, f"stopping: finishing {step} and saving{again}\n".encode())
        self._signaled = True
