"""Work beside training: a thread on every rank, and a process group that only these threads use.

Two threads that exchange over one group would take each other's messages, so the threads have a gloo group of their own.
"""

import threading
import weakref
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

Job = Callable[[dist.ProcessGroup | None], None]
_threads: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()


class AsyncWorker:
    """Does one job at a time. All ranks make it, start the same jobs in the same order and wait for them.

    timeout_seconds: a collective inside a job that waits longer fails.
    """

    def __init__(self, timeout_seconds: float):
        self._group: dist.ProcessGroup | None = None
        if dist.is_initialized():
            made = dist.new_group(timeout=timedelta(seconds=timeout_seconds), backend="gloo")
            assert isinstance(made, dist.ProcessGroup)  # every rank is in it
            self._group = made
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether the job that was started last has failed on this rank; `wait` raises why."""
        return self._failure is not None

    def start(self, job: Job) -> None:
        """Begin `job(group)` and return; its collectives must use that group. Waits for the one before, as `wait` does."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="background", daemon=True)
        _threads.add(self._thread)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being done. Raises, once, what the last job raised on this rank."""
        if self._thread is not None:
            self._thread.join()
        self._thread, failure, self._failure = None, self._failure, None
        if failure is not None:
            raise failure

    def _run(self, job: Job) -> None:
        try:
            job(self._group)
        except BaseException as error:
            self._failure = error


def busy() -> bool:
    """Whether a job of this process is being done."""
    return any(thread.is_alive() for thread in list(_threads))


def join_all(seconds: float | None = None) -> None:
    """Wait for every job of this process, at most `seconds`: before its process groups go, or itself."""
    for thread in list(_threads):
        thread.join(seconds)
