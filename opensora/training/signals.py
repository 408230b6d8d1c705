"""Stopping on request: SIGTERM, Ctrl-C and Slurm's SIGUSR1 finish the step, save and exit 0."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """A request to stop this process; the loop reads it once per step and agrees over all ranks."""

    def __init__(self) -> None:
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
        self._signaled = True
