"""JobQueue: jobs of many users for one device. One runs at a time, and users take turns."""

import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from opensora.errors import OpenSoraError
from opensora.log import logger

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class Cancelled(OpenSoraError):
    """The user ended the job."""


class QueueFull(OpenSoraError):
    """Too many jobs wait, of this user or of all."""


@dataclass(eq=False)
class Job:
    """One request of one user; the queue's thread writes it, others read it."""

    user: str
    request: Any
    number: int
    state: State = "waiting"
    done: int = 0  # steps
    steps: int = 0  # of the whole job, 0 until it is known
    began: float = 0.0  # seconds of time.monotonic
    preview: Any = None  # the latest look into the result, as `Report.show` got it
    result: Any = None
    error: str = ""  # a sentence, of a failed job
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)

    def seconds_left(self) -> float | None:
        """None before the first step is done."""
        if not self.done or self.state != "running":
            return None
        return (time.monotonic() - self.began) / self.done * (self.steps - self.done)


class Report:
    """Progress of a job, for its `work`. Both raise Cancelled when the job is to end."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def step(self, done: int, steps: int) -> None:
        """So many steps of all are done."""
        self._job.done, self._job.steps = done, steps
        self._leave_if_cancelled()

    def show(self, preview: Any) -> None:
        """A look into what is being made."""
        self._job.preview = preview
        self._leave_if_cancelled()

    def _leave_if_cancelled(self) -> None:
        if self._job.stop.is_set():
            raise Cancelled("cancelled")


Work = Callable[[Any, Report], Any]  # a request to its result


class JobQueue:
    """Runs `work` in a thread of its own.

    per_user: jobs of one user that wait or run at a time. most: of all users.
    """

    def __init__(self, work: Work, *, per_user: int = 3, most: int = 200) -> None:
        self._work, self._per_user, self._most = work, per_user, most
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # users in the order of their turns
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def submit(self, user: str, request: Any) -> Job:
        """Append a job. Raises QueueFull."""
        with self._changed:
            own = len(self._waiting.get(user, ())) + (self._running is not None and self._running.user == user)
            total = sum(map(len, self._waiting.values()))
            if own >= self._per_user:
                raise QueueFull(f"{own} of your videos wait or are being made; wait for one, or cancel it")
            if total >= self._most:
                raise QueueFull(f"{total} videos wait to be made; try again later")
            job = Job(user, request, next(self._numbers))
            self._waiting.setdefault(user, deque()).append(job)
            self._changed.notify()
            return job

    def cancel(self, job: Job) -> None:
        """End a job: at once if it waits, after its current step if it runs."""
        with self._changed:
            job.stop.set()
            own = self._waiting.get(job.user)
            if own is not None and job in own:
                own.remove(job)
                self._forget_idle(job.user)
                _end(job, "cancelled")

    def before(self, job: Job) -> int:
        """Jobs that run before this one."""
        with self._changed:
            own = self._waiting.get(job.user)
            if own is None or job not in own:
                return 0
            rounds, users = own.index(job), list(self._waiting)
            turn = users.index(job.user)
            others = (
                min(len(self._waiting[user]), rounds + (place < turn))
                for place, user in enumerate(users)
                if user != job.user
            )
            return rounds + sum(others) + (self._running is not None)

    def close(self) -> None:
        """End all jobs and the thread."""
        with self._changed:
            self._closed = True
            for job in [job for jobs in self._waiting.values() for job in jobs]:
                job.stop.set()
                _end(job, "cancelled")
            self._waiting.clear()
            if self._running is not None:
                self._running.stop.set()
            self._changed.notify()
        self._thread.join()

    def _forget_idle(self, user: str) -> None:
        if not self._waiting[user]:
            del self._waiting[user]

    def _next(self) -> Job | None:
        """The job whose turn it is; None when the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            user, jobs = next(iter(self._waiting.items()))
            job = jobs.popleft()
            self._waiting.move_to_end(user)
            self._forget_idle(user)
            job.state, job.began, self._running = "running", time.monotonic(), job
            return job

    def _run(self) -> None:
        while (job := self._next()) is not None:
            state: State = "failed"
            try:
                job.result = self._work(job.request, Report(job))
                state = "done"
            except Cancelled:
                state = "cancelled"
            except OpenSoraError as error:
                job.error = str(error)
            except Exception as error:
                logger().exception("web: a job failed")
                job.error = f"the server failed: {type(error).__name__}: {error}; its log says where"
            with self._changed:
                self._running = None
            _end(job, state)


def _end(job: Job, state: State) -> None:
    job.state = state
    job.finished.set()
