"""Ends a job in which a rank died or hangs, and says which one.

A collective that fails names a socket at best. So a thread on every rank tells the ranks' store how far its main thread
is; rank 0 reads all of them, the others read rank 0. Where a rank keeps the others waiting longer than the timeout of
their collectives, all of them end with its number, whether its process is gone, stopped, or hangs in its data.
"""

import itertools
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from opensora.errors import RankLost
from opensora.log import logger
from opensora.parallel.background import busy, join_all
from opensora.parallel.watchdog.rank_status import AT_WORK, LOADING, STARTING, Clock, Progress, Table
from opensora.parallel.world import World

T = TypeVar("T")
_VERDICT = "watch/verdict"
_LONGEST_INTERVAL = 1.0  # seconds between two signs of life
_SILENCE = 2.0  # seconds, at least: a rank that sent none for so long after an exchange failed is gone
_REMEDY = "look at that rank's log and machine, and start the same command again: it goes on from what was saved"
_FOR_A_SAVE = 30.0  # seconds
_OF_COLLECTIVES = re.compile(r"gloo|nccl|hccl|connection (closed|reset)|timed out|broken pipe|socket", re.IGNORECASE)


class Watch:
    """One per rank, from the start of the group to its end."""

    def __init__(self, world: World, timeout_seconds: float, leave: Callable[[int], None] = os._exit):
        self._world, self._limit, self._leave = world, timeout_seconds, leave
        self._interval = min(_LONGEST_INTERVAL, timeout_seconds / 20)
        self._store = dist.distributed_c10d._get_default_store().clone()  # one that waits for nobody
        self._store.set_timeout(timedelta(seconds=timeout_seconds))
        self._beat = 0
        self._place = (STARTING, 0)
        self._left: str | None = None
        self._cut_off = False
        self._main = threading.get_ident()
        self._clock = Clock(time.monotonic(), longest=timeout_seconds / 2)
        self._table = Table(world.size, self._clock.read(time.monotonic()))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def loading(self, batches: Iterable[T], start_step: int, per_step: int) -> Iterator[T]:
        """The micro-batches of a run, `per_step` of them a step; what the rank does with them is told on the way."""
        found = iter(batches)
        for number in itertools.count(start_step * per_step):
            step = number // per_step + 1
            self._place = (LOADING, step)
            try:
                batch = next(found)
            except StopIteration:
                return
            self._place = (AT_WORK, step)
            yield batch

    def explain(self, error: BaseException) -> str | None:
        """After an exchange failed here: which rank is to blame, in words; None when nothing tells."""
        self._left, self._cut_off = _in_short(error), True
        silence, began = max(3 * self._interval, _SILENCE), time.monotonic()
        table, told = Table(self._world.size, began), None
        try:
            while told is None and time.monotonic() - began < 2 * silence:
                self._closed.wait(self._interval)
                table.note(self._hear(range(self._world.size)), time.monotonic())
                told = self._told() or table.culprit(time.monotonic(), silence)
            told = told or table.behind()
            if told is not None:
                self._store.set(_VERDICT, told)
        except RuntimeError as failure:
            told = told or f"rank 0: the ranks' meeting place on its machine cannot be reached ({_in_short(failure)})"
        if self._world.is_main:
            self._closed.wait(3 * self._interval)  # the store may be in this process, and the others read it
        return told

    def close(self, error: BaseException | None = None) -> None:
        """The rank leaves: all is well, or it lets the others know what is not."""
        self._left = "" if error is None else _in_short(error)
        self._closed.set()
        self._thread.join()
        try:
            self._tell()
        except RuntimeError:
            return  # the store went with a rank that was faster

    def _run(self) -> None:
        unreachable: float | None = None
        while not self._closed.wait(self._interval):
            try:
                self._tell()
                verdict = self._verdict()
                unreachable = None
            except RuntimeError as error:
                unreachable = unreachable or time.monotonic()
                lost = time.monotonic() - unreachable > self._limit
                verdict = f"rank 0: the ranks' meeting place cannot be reached ({_in_short(error)})" if lost else None
            if verdict is not None and not self._closed.is_set() and not self._cut_off:
                self._end(verdict)

    def _tell(self) -> None:
        self._beat += 1
        doing, step = self._place
        mine = Progress(self._beat, doing, step, _entered(), self._left, self._cut_off)
        self._store.set(_key(self._world.global_rank), mine.text())

    def _hear(self, ranks: Iterable[int]) -> dict[int, Progress]:
        known = [rank for rank in ranks if self._store.check([_key(rank)])]
        return {rank: Progress.read(self._store.get(_key(rank))) for rank in known}

    def _told(self) -> str | None:
        """What another rank has found already."""
        return self._store.get(_VERDICT).decode() if self._store.check([_VERDICT]) else None

    def _verdict(self) -> str | None:
        """Rank 0 judges all ranks and the others learn it from the store; they judge rank 0 alone."""
        told = self._told()
        if told is not None:
            return told
        now = self._clock.read(time.monotonic())
        if self._world.is_main:
            self._table.note(self._hear(range(self._world.size)), now)
            verdict = self._table.standstill(now, self._limit)
        else:
            self._table.note(self._hear([0]), now)
            verdict = self._table.silent(0, now, self._limit + 2 * self._interval)
        if verdict is not None:
            self._store.set(_VERDICT, verdict)
            self._closed.wait(
                3 * self._interval
            )  # the store may be in this process, and the others have yet to read it
        return verdict

    def _end(self, verdict: str) -> None:
        text = f"error: {verdict}; {_REMEDY}\n"
        if f"rank {self._world.global_rank}:" in verdict:
            frames = traceback.format_stack(sys._current_frames().get(self._main))[-4:]
            text += f"rank {self._world.global_rank} stands here:\n{''.join(frames)}"
        print(text, end="", file=sys.stderr, flush=True)
        self._leave(RankLost.exit_code)


@contextmanager
def watching(world: World, timeout_seconds: float) -> Iterator[Watch]:
    """A watch around everything that the ranks do together.

    Raises RankLost, which names the rank to blame, for a collective that failed.
    """
    watch = Watch(world, timeout_seconds)
    try:
        yield watch
    except BaseException as error:
        of_collective = isinstance(error, RuntimeError) and _OF_COLLECTIVES.search(str(error)) is not None
        verdict = watch.explain(error) if of_collective and world.size > 1 else None
        if verdict is None:
            watch.close(error)
        if busy():  # told now: a launcher may not wait for this rank
            seconds = min(timeout_seconds, _FOR_A_SAVE)
            told = "%s; waits up to %.0f s for the checkpoint that is being written"
            logger().warning(told, verdict or _in_short(error), seconds)
            join_all(seconds)
        if verdict is None:
            raise
        raise RankLost(f"{verdict}; {_REMEDY}") from error
    watch.close()


def _key(rank: int) -> str:
    return f"watch/{rank}"


def _entered() -> dict[str, int]:
    """Collectives that this rank has entered: in the group of all ranks, and in those of some, whoever made them."""
    found = {}
    for group, name in list(dist.distributed_c10d._world.pg_names.items()):
        for device in group._device_types:
            backend = group._get_backend(device)
            with suppress(RuntimeError):  # one that does not count
                found[f"{name} {backend.name()}"] = backend._get_sequence_number_for_group()  # type: ignore[attr-defined]
    return found


def _in_short(error: BaseException) -> str:
    """The first line; the traceback is in the rank's own log."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
