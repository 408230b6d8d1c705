"""The queue of jobs: order, limits, cancelling, and what is said of failures."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from opensora.errors import ConfigError
from opensora.web.job_queue import JobQueue, QueueFull, Report

SECONDS = 30.0


class Worker:
    """A stand-in for a model: it waits for `go` and keeps the order of requests."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Event()
        self.order: list[Any] = []

    def __call__(self, request: Any, report: Report) -> Any:
        self.order.append(request)
        self.started.set()
        assert self.go.wait(SECONDS)
        for step in range(3):
            report.step(step + 1, 3)
        return f"made {request}"


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def queue(worker: Worker) -> Iterator[JobQueue]:
    queue = JobQueue(worker, per_user=60, most=100)
    yield queue
    worker.go.set()
    queue.close()


def test_users_take_turns(queue: JobQueue, worker: Worker) -> None:
    """One who sends fifty requests at once does not keep the others waiting; nothing is lost."""
    first = queue.submit("ann", "ann 0")
    assert worker.started.wait(SECONDS)
    jobs = [queue.submit("ann", f"ann {number}") for number in range(1, 50)]
    jobs += [queue.submit("bob", "bob 0"), queue.submit("bob", "bob 1"), queue.submit("eve", "eve 0")]
    # "ann" waits first in line: ann 1, bob 0, eve 0, ann 2, bob 1, ann 3 ...
    places = {job.request: queue.before(job) for job in jobs}
    assert [places[name] for name in ("ann 1", "bob 0", "eve 0", "ann 2", "bob 1", "ann 3", "ann 49")] == [
        1, 2, 3, 4, 5, 6, 52
    ]  # fmt: skip
    worker.go.set()
    assert all(job.finished.wait(SECONDS) for job in (first, *jobs))
    assert worker.order[:7] == ["ann 0", "ann 1", "bob 0", "eve 0", "ann 2", "bob 1", "ann 3"]
    assert sorted(worker.order) == sorted(job.request for job in (first, *jobs))
    assert [job.result for job in jobs] == [f"made {job.request}" for job in jobs]
    assert {(job.state, job.done, job.steps) for job in jobs} == {("done", 3, 3)}
    assert queue.before(first) == 0


def test_limits(worker: Worker) -> None:
    queue = JobQueue(worker, per_user=2, most=3)
    try:
        running = queue.submit("ann", 0)
        assert worker.started.wait(SECONDS)
        queue.submit("ann", 1)
        with pytest.raises(QueueFull, match="2 of your videos"):
            queue.submit("ann", 2)
        queue.submit("bob", 3)
        queue.submit("bob", 4)
        with pytest.raises(QueueFull, match="3 videos wait"):
            queue.submit("eve", 5)
        worker.go.set()
        assert running.finished.wait(SECONDS)
    finally:
        worker.go.set()
        queue.close()
    assert 5 not in worker.order


def test_cancelling(queue: JobQueue, worker: Worker) -> None:
    running, waiting, last = (queue.submit("ann", number) for number in range(3))
    assert worker.started.wait(SECONDS)
    queue.cancel(waiting)
    assert (waiting.state, waiting.finished.is_set()) == ("cancelled", True)
    queue.cancel(running)
    assert running.state == "running"
    worker.go.set()
    assert running.finished.wait(SECONDS)
    assert (running.state, running.done) == ("cancelled", 1)  # after the step at which it noticed
    assert last.finished.wait(SECONDS)
    assert (last.state, worker.order) == ("done", [0, 2])
    queue.cancel(last)  # too late, and no error
    assert last.state == "done"


def test_failures_are_sentences_and_the_next_job_runs() -> None:
    def work(request: BaseException | None, report: Report) -> str:
        if request is not None:
            raise request
        return "made"

    queue = JobQueue(work)
    mistake, bug, good = (
        queue.submit(user, error) for user, error in enumerate((ConfigError("size: is 7"), KeyError("x"), None))
    )
    assert all(job.finished.wait(SECONDS) for job in (mistake, bug, good))
    queue.close()
    assert (mistake.state, mistake.error) == ("failed", "size: is 7")
    assert (bug.state, bug.error) == ("failed", "the server failed: KeyError: 'x'; its log says where")
    assert (good.state, good.result) == ("done", "made")


def test_closing_ends_everything(worker: Worker) -> None:
    queue = JobQueue(worker)
    jobs = [queue.submit("ann", number) for number in range(3)]
    assert worker.started.wait(SECONDS)
    threading.Timer(0.05, worker.go.set).start()
    queue.close()
    assert [job.state for job in jobs] == ["cancelled"] * 3
    assert worker.order == [0]
