"""A session-long pool of gloo ranks: processes that import torch and colossalai once and then run many tests.

`run_ranks(function, world_size, *arguments)` runs a top-level function of a test module in `world_size` processes
that share a fresh process group, and returns the return value of each.
"""

import atexit
import contextlib
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.support.processes import Process

_LEAVE = b"leave"
GRACE_SECONDS = 20  # time for the other ranks to fail too after one failed, before they are killed


class RankError(AssertionError):
    """A rank raised, died or did not answer in time; the message holds its traceback."""


class Pool:
    """Rank processes, started when first needed and started again after a failure that may have left them stuck."""

    def __init__(self) -> None:
        self._ranks: list[tuple[Process, Connection]] = []

    def run(self, function: Callable[..., Any], world_size: int, arguments: tuple, timeout: float) -> list[Any]:
        self._start(world_size)
        with tempfile.TemporaryDirectory(prefix="ranks-") as meeting_place:
            store = str(Path(meeting_place, "store"))
            for rank in range(world_size):
                job = pickle.dumps((function, arguments, rank, world_size, store, timeout))
                self._ranks[rank][1].send_bytes(job)
            results, failures = self._collect(world_size, timeout)
        if failures:
            raise RankError("\n".join(f"--- rank {rank} ---\n{text}" for rank, text in sorted(failures.items())))
        return [results[rank] for rank in range(world_size)]

    def close(self) -> None:
        for process, connection in self._ranks:
            connection.close()
            process.kill()
            process.join()
        self._ranks = []

    def _start(self, world_size: int) -> None:
        while len(self._ranks) < world_size:
            ours, theirs = multiprocessing.Pipe()
            with theirs:
                self._ranks.append((Process(_serve, stdin=theirs.fileno()), ours))

    def _collect(self, world_size: int, timeout: float) -> tuple[dict[int, Any], dict[int, str]]:
        waiting = {self._ranks[rank][1]: rank for rank in range(world_size)}
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + timeout
        while waiting:
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                failures |= dict.fromkeys(waiting.values(), f"no answer within {timeout} s")
                break
            for connection in ready:
                rank = waiting.pop(connection)  # type: ignore[call-overload]
                try:
                    succeeded, value = pickle.loads(connection.recv_bytes())  # type: ignore[union-attr]
                except EOFError:
                    succeeded, value = False, "the process died"
                if succeeded:
                    results[rank] = value
                else:
                    failures[rank] = value
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if failures:
            self.close()
        for _, connection in self._ranks[:world_size]:
            connection.send_bytes(_LEAVE)
        return results, failures


_pool = Pool()
atexit.register(_pool.close)


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Run `function(*arguments)` on gloo ranks; arguments and results travel pickled. The values, in rank order.

    Raises RankError with the traceback of every rank that failed.
    """
    return _pool.run(function, world_size, arguments, timeout)


@contextlib.contextmanager
def one_rank() -> Iterator[Any]:
    """A process group of this process alone."""
    from opensora.parallel import world
    from opensora.platforms import select

    try:
        yield world.init(select("cpu"), timeout_seconds=60)
    finally:
        world.shutdown()


def _serve() -> None:
    """Run the jobs that come in by standard input until it closes: join the group of each, send its result, leave."""
    import torch

    torch.set_num_threads(1)
    connection = Connection(os.dup(0))
    while True:
        try:
            job = connection.recv_bytes()
        except EOFError:
            return
        _answer(job, connection)


def _answer(job: bytes, connection: Connection) -> None:
    from opensora.parallel import world

    try:
        function, arguments, rank, size, store, timeout = pickle.loads(job)
        _join(rank, size, store, timeout)
        succeeded, answer = True, pickle.dumps((True, function(*arguments)))
    except BaseException:
        succeeded, answer = False, pickle.dumps((False, traceback.format_exc()))
    try:
        connection.send_bytes(answer)
        if succeeded:  # to leave now would fail a slower rank, which may still connect its last group to this one
            connection.recv_bytes()
    finally:
        with contextlib.suppress(RuntimeError):  # a peer that failed may have left already
            world.shutdown()


def _join(rank: int, size: int, store: str, timeout: float) -> None:
    import torch
    import torch.distributed as dist

    from opensora.parallel import world
    from opensora.platforms import select

    torch.manual_seed(0)
    world.init_process_group(dist.FileStore(store, size), rank, size, rank, select("cpu"), timeout)
