"""A Ray cluster: --workers actors, each with a tool of its own, on whatever machines have room for them.

The rows travel to the actors and back, the footage does not: every machine reads it under the same path.
"""

import logging
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from opensora.datasets.table_writer import batches
from opensora.errors import ConfigError, DataError, OpenSoraError
from tools.packages import require_packages
from tools.work import Job, Outcome, Tool

_QUEUED_PER_WORKER = 2
_SECONDS_TO_ANSWER = 10
_ATTEMPTS = 3  # of a batch whose actor is lost with its machine


def outcomes(
    tool: Tool, jobs: Iterable[Job], workers: int, *, address: str, cpus: float, gpus: float
) -> Iterator[tuple[Job, Outcome]]:
    """Outcomes as they come.

    A row that was begun keeps no state: after a stop it begins anew.

    address: of the cluster; "local" starts one in this machine, "auto" takes the one that runs. cpus, gpus: that each worker
    keeps for itself.
    """
    require_packages(["ray"])
    import ray

    connected = ray.is_initialized()  # by the program around this
    if not connected:
        _connect(address)
    try:
        _require_resources(ray, workers, cpus, gpus)
        yield from _outcomes(ray, tool, batches(jobs, tool.batch_size), workers, cpus, gpus)
    finally:
        if not connected:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"--ray-address {address}: no cluster answers ({reason}); start one with `ray start --head`, or use "
            "--ray-address local"
        ) from error


def _require_resources(ray: Any, workers: int, cpus: float, gpus: float) -> None:
    """An actor that no machine has room for would wait forever."""
    have = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if each * workers > have.get(name, 0.0):
            raise ConfigError(
                f"--workers {workers}: they need {each * workers:g} {name}s, {each:g} each, and the cluster has "
                f"{have.get(name, 0.0):g}; use fewer workers, or change --worker-{name.lower()}s"
            )


def _outcomes(
    ray: Any, tool: Tool, queue: Iterator[list[Job]], workers: int, cpus: float, gpus: float
) -> Iterator[tuple[Job, Outcome]]:
    # An actor that is lost with its machine starts again elsewhere, and does its batch once more.
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_ATTEMPTS)(_Worker)
    actors = [remote.remote(tool) for _ in range(workers)]
    running: dict[Any, tuple[Any, list[Job]]] = {}
    idle = [actor for actor in actors for _ in range(_QUEUED_PER_WORKER)]
    while True:
        while idle and (some := next(queue, [])):
            actor = idle.pop(0)
            running[actor.work.remote(some)] = (actor, some)
        if not running:
            return
        finished, _ = ray.wait(list(running), num_returns=1)
        for reference in finished:
            actor, some = running.pop(reference)
            try:
                results = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, OpenSoraError) else error from error
            except ray.exceptions.RayActorError as error:
                labels = ", ".join(job.label for job in some)
                raise DataError(
                    f"a worker died {_ATTEMPTS + 1} times (out of memory, or killed by a decoder crash) at one of: {labels}; "
                    "what is done is kept; run again with --resume"
                ) from error
            idle.append(actor)
            yield from zip(some, results, strict=True)


class _Worker:
    """An actor."""

    def __init__(self, tool: Tool) -> None:
        self._tool = tool

    def work(self, jobs: list[Job]) -> list[Outcome]:
        return self._tool.work(jobs)
