"""Stopping on request: SIGTERM and Ctrl-C finish the step, save and exit 0."""

import signal
from types import FrameType


class StopRequest:
    """Remembers that a signal asked this process to stop; the loop agrees over all ranks once per step."""

    def __init__(self) -> None:
        self.requested = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self.requested = True
