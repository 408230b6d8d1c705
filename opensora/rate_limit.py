"""RateLimit: at most so much per minute, for all threads of a process."""

import threading
import time
from collections.abc import Callable


class RateLimit:
    """Spreads requests evenly over time.

    per_minute: requests; None = no limit. clock, sleep: in seconds; tests pass their own.
    """

    def __init__(
        self,
        per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = clock()  # when the next request may go
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the caller's request may go."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            self._sleep(turn - now)

    def hold(self, seconds: float) -> None:
        """No request goes for that long: the server said so to one of them."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
