"""Ends a job in which a rank died or hangs, and says which one.

A collective that fails names a socket at best. So a thread on every rank writes to the ranks' store how far its main
thread is; rank 0 reads all of them, the others read rank 0. When a rank keeps the others waiting longer than the timeout
of their collectives, all ranks end with its number, whether its process is gone, stopped, or hangs in its data.
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
from opensora.parallel.async_save import any_running, join_all
from opensora.parallel.watchdog.rank_status import AT_WORK, LOADING, STARTING, Progress, RankTable, SuspendAwareClock
from opensora.parallel.world import World

T = TypeVar("T")
_VERDICT = "watch/verdict"  # key of the store
_MAX_INTERVAL = 1.0  # seconds between two signs of life
_MIN_SILENCE = 2.0  # seconds: a rank that sends no sign of life for this long after a collective failed is gone
_REMEDY = "look at that rank's log and machine, and start the same command again: it goes on from what was saved"
_MAX_SAVE_WAIT = 30.0  # seconds
_PATIENCE = 30.0  # seconds after a rank failed: time for the others to end by an error of their own, where there is one
_SILENCE = 60.0  # seconds without a sign of life, while all others wait, after which a rank is lost
_COLLECTIVE_ERROR = re.compile(r"gloo|nccl|hccl|connection (closed|reset)|timed out|broken pipe|socket", re.IGNORECASE)


class Watch:
    """One per rank, from the start of the group to its end."""

    def __init__(self, world: World, timeout_seconds: float, leave: Callable[[int], None] = os._exit):
        self._world, self._limit, self._leave = world, timeout_seconds, leave
        self._interval = min(_MAX_INTERVAL, timeout_seconds / 20)
        self._store = (
            dist.distributed_c10d._get_default_store().clone()
        )  # it does not wait for the thread that uses the other
        self._store.set_timeout(timedelta(seconds=timeout_seconds))
        self._beat = 0
        self._place = (STARTING, 0)
        self._left: str | None = None
        self._cut_off = False
        self._main_thread = threading.get_ident()
        self._patience, self._silence = min(_PATIENCE, timeout_seconds), min(_SILENCE, timeout_seconds)
        self._clock = SuspendAwareClock(time.monotonic(), longest=self._patience / 2)
        ranks = range(world.size) if world.is_main else (0, world.global_rank)
        self._table = RankTable(ranks, self._clock.read(time.monotonic()))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def track(self, batches: Iterable[T], start_step: int, per_step: int) -> Iterator[T]:
        """The micro-batches of a run, `per_step` of them a step; reports on the way if the rank loads or computes."""
        source = iter(batches)
        for number in itertools.count(start_step * per_step):
            step = number // per_step + 1
            self._place = (LOADING, step)
            try:
                batch = next(source)
            except StopIteration:
                return
            self._place = (AT_WORK, step)
            yield batch

    def count_step(self) -> None:
        """Report one more step of work that loads no batches, such as a denoising step."""
        self._place = (AT_WORK, self._place[1] + 1)

    def diagnose(self, error: BaseException) -> str | None:
        """After a collective failed here: a sentence on the rank to blame; None when there is no evidence."""
        self._left, self._cut_off = _first_line(error), True
        silence, began = max(3 * self._interval, _MIN_SILENCE), time.monotonic()
        table, verdict = RankTable(range(self._world.size), began), None
        try:
            while verdict is None and time.monotonic() - began < 2 * silence:
                self._stopped.wait(self._interval)
                table.update(self._read(range(self._world.size)), time.monotonic())
                verdict = self._published_verdict() or table.first_failure(time.monotonic(), silence)
            verdict = verdict or table.missing_from_collective()
            if verdict is not None:
                self._store.set(_VERDICT, verdict)
        except RuntimeError as failure:
            lost_store = f"rank 0: the ranks' meeting place on its machine cannot be reached ({_first_line(failure)})"
            verdict = verdict or lost_store
        if self._world.is_main:
            self._stopped.wait(3 * self._interval)  # the store may be in this process, and the others read it
        return verdict

    def stop(self, error: BaseException | None = None) -> None:
        """The rank leaves: it reports a good end, or its error to the others."""
        self._left = "" if error is None else _first_line(error)
        self._stopped.set()
        self._thread.join()
        try:
            self._report()
        except RuntimeError:
            return  # the store went with a rank that was faster

    def _run(self) -> None:
        unreachable_since: float | None = None
        while not self._stopped.wait(self._interval):
            try:
                self._report()
                verdict = self._verdict()
                unreachable_since = None
            except RuntimeError as error:
                unreachable_since = unreachable_since or time.monotonic()
                lost = time.monotonic() - unreachable_since > self._limit
                verdict = f"rank 0: the ranks' meeting place cannot be reached ({_first_line(error)})" if lost else None
            if verdict is not None and not self._stopped.is_set() and not self._cut_off:
                self._end(verdict)

    def _report(self) -> None:
        self._beat += 1
        doing, step = self._place
        progress = Progress(self._beat, doing, step, _entered_collectives(), self._left, self._cut_off)
        self._store.set(_key(self._world.global_rank), progress.to_json())

    def _read(self, ranks: Iterable[int]) -> dict[int, Progress]:
        known = [rank for rank in ranks if self._store.check([_key(rank)])]
        return {rank: Progress.from_json(self._store.get(_key(rank))) for rank in known}

    def _published_verdict(self) -> str | None:
        return self._store.get(_VERDICT).decode() if self._store.check([_VERDICT]) else None

    def _verdict(self) -> str | None:
        """Rank 0 judges all ranks and publishes its verdict in the store; the others judge rank 0 only."""
        published = self._published_verdict()
        if published is not None:
            return published
        now = self._clock.read(time.monotonic())
        if self._world.is_main:
            self._table.update(self._read(range(self._world.size)), now)
            verdict = self._table.find_stalled(now, self._limit)
        else:
            self._table.update(self._read([0, self._world.global_rank]), now)
            verdict = self._table.is_silent(0, now, self._limit + 2 * self._interval)
        verdict = verdict or self._table.find_lost(now, self._patience, self._silence)
        if verdict is not None:
            self._store.set(_VERDICT, verdict)
            # The store may be in this process, and the others have yet to read it.
            self._stopped.wait(3 * self._interval)
        return verdict

    def _end(self, verdict: str) -> None:
        text = f"error: {verdict}; {_REMEDY}\n"
        if f"rank {self._world.global_rank}:" in verdict:
            frames = traceback.format_stack(sys._current_frames().get(self._main_thread))[-4:]
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
        failed_collective = isinstance(error, RuntimeError) and _COLLECTIVE_ERROR.search(str(error)) is not None
        verdict = watch.diagnose(error) if failed_collective and world.size > 1 else None
        if verdict is None:
            watch.stop(error)
        if any_running():  # log the error before waiting: a launcher may not wait for this rank
            seconds = min(timeout_seconds, _MAX_SAVE_WAIT)
            message = "%s; waits up to %.0f s for the checkpoint that is being written"
            logger().warning(message, verdict or _first_line(error), seconds)
            join_all(seconds)
        if verdict is None:
            raise
        raise RankLost(f"{verdict}; {_REMEDY}") from error
    watch.stop()


def _key(rank: int) -> str:
    return f"watch/{rank}"


def _entered_collectives() -> dict[str, int]:
    """Process group -> number of its collectives that this rank has entered, for every group of this process."""
    counts = {}
    for group, name in list(dist.distributed_c10d._world.pg_names.items()):
        for device in group._device_types:
            backend = group._get_backend(device)
            with suppress(RuntimeError):  # one that does not count
                counts[f"{name} {backend.name()}"] = backend._get_sequence_number_for_group()  # type: ignore[attr-defined]
    return counts


def _first_line(error: BaseException) -> str:
    """The error's type and first line; the traceback is in the rank's own log."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
