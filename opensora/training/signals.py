"""Stopping on request: SIGTERM, Ctrl-C and Slurm's SIGUSR1 finish the step, save and exit 0."""

import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether this process is to stop; the loop asks once per step and agrees over all ranks."""

    def __init__(self) -> None:
        self._signalled = False
        self._reasons: list[Callable[[], bool]] = []
        for number in SIGNALS:
            signal.signal(number, self._remember)

    @property
    def requested(self) -> bool:
        """Whether a signal came or one of the reasons holds."""
        return self._signalled or any(holds() for holds in self._reasons)

    def also_when(self, holds: Callable[[], bool]) -> None:
        """Stop as well once `holds()` is true on a rank."""
        self._reasons.append(holds)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self._signalled = True
