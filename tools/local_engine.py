"""The processes of this machine: a tool works in the command's own process, or in --workers processes."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from opensora.datasets.table_writer import batches
from opensora.errors import DataError
from tools.work import Job, Outcome, Progress, Report, Tool
from tools.worker_processes import end_with_parent

_QUEUED_PER_WORKER = 4
_LOOK_SECONDS = 0.5  # between two looks at the progress of the workers


def outcomes(tool: Tool, jobs: Iterable[Job], workers: int, report: Report) -> Iterator[tuple[Job, Outcome]]:
    """Outcomes as they come. Few jobs are queued at a time, so that memory does not grow with the input."""
    if workers <= 1:
        for some in batches(jobs, tool.batch_size):
            yield from zip(some, tool.work(some, report), strict=True)
        return
    # Fresh processes: a forked one would inherit threads' locks from libraries that the parent has loaded.
    context = get_context("spawn")
    progress_queue = context.SimpleQueue()
    with ProcessPoolExecutor(
        workers, context, initializer=_start_worker, initargs=(os.getpid(), tool, progress_queue)
    ) as pool:
        queue = batches(jobs, tool.batch_size)
        running: dict[Future[list[Outcome]], list[Job]] = {}
        try:
            while True:
                while len(running) < workers * _QUEUED_PER_WORKER and (some := next(queue, [])):
                    running[pool.submit(_work_in_process, some)] = some
                if not running:
                    return
                finished = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED).done
                at_work = {job.key for some in running.values() for job in some}
                while not progress_queue.empty():
                    job, progress = progress_queue.get()
                    if job.key in at_work:  # its end may have overtaken it
                        report(job, progress)
                for future in finished:
                    results = future.result()
                    yield from zip(running.pop(future), results, strict=True)
        except BrokenProcessPool as error:
            labels = ", ".join(job.label for some in list(running.values())[:workers] for job in some)
            raise DataError(
                f"a worker process died (out of memory, or killed by a decoder crash) at one of: {labels}; "
                "what is done is kept; run again with --resume and fewer --workers"
            ) from error
        finally:
            for future in running:
                future.cancel()


_tool: Tool  # of this worker process
_progress_queue: Any  # to the parent


def _start_worker(parent: int, tool: Tool, progress_queue: Any) -> None:
    global _tool, _progress_queue
    end_with_parent(parent)
    _tool, _progress_queue = tool, progress_queue


def _work_in_process(jobs: list[Job]) -> list[Outcome]:
    return _tool.work(jobs, _report)


def _report(job: Job, progress: Progress) -> None:
    _progress_queue.put((job, progress))
