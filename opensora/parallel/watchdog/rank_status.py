"""The progress of every rank, and the rank that holds the others up when the job stands still.

Pure bookkeeping on times that the caller passes in; `watchdog.py` fills it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

LOADING = "loading the data of"
AT_WORK = "at work on"
STARTING = "starting"


@dataclass(frozen=True)
class Progress:
    """The report of one rank about itself."""

    beat: int  # grows while the process runs, whatever its main thread does
    doing: str = STARTING
    step: int = 0  # optimizer step, counted from 1
    collectives: Mapping[str, int] = field(default_factory=dict)  # process group -> collectives of it entered here
    left: str | None = None  # set when the rank enters no more collectives: "" after a good end, otherwise the error
    cut_off: bool = False  # a collective failed here; another rank is to blame

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> "Progress":
        return Progress(**json.loads(text))

    def describe(self) -> str:
        return self.doing if self.doing == STARTING else f"{self.doing} step {self.step}"

    def progressed_since(self, other: "Progress") -> bool:
        """True if the main thread has done anything since."""
        return (self.doing, self.step, self.collectives) != (other.doing, other.step, other.collectives)


class SuspendAwareClock:
    """Seconds that pass while this process runs. A pause in which the whole job was suspended is left out.

    longest: seconds between two reads; a longer gap is such a pause.
    """

    def __init__(self, now: float, longest: float):
        self._last_read, self._longest, self._suspended = now, longest, 0.0

    def read(self, now: float) -> float:
        """The time on this clock when the system clock shows `now`."""
        pause, self._last_read = now - self._last_read, now
        if pause > self._longest:
            self._suspended += pause
        return now - self._suspended


@dataclass
class _Observed:
    progress: Progress
    beat_at: float  # when its beat last changed, on the observer's clock
    moved_at: float  # when it last progressed


class RankTable:
    """The latest report of every rank, as one observer has read them. Times are seconds of the observer's clock."""

    def __init__(self, ranks: Iterable[int], now: float):
        self._observed = {rank: _Observed(Progress(beat=-1), now, now) for rank in ranks}

    def update(self, reports: Mapping[int, Progress], now: float) -> None:
        for rank, progress in reports.items():
            observed = self._observed[rank]
            if progress.progressed_since(observed.progress):
                observed.moved_at = now
            if progress.beat != observed.progress.beat:
                observed.beat_at = now
            if progress.left and not observed.progress.left:
                observed.moved_at = now
            observed.progress = progress

    def find_stalled(self, now: float, limit: float) -> str | None:
        """A sentence on the ranks that hold the job up for more than `limit` seconds; None when none does."""
        running = {rank: each for rank, each in self._observed.items() if each.progress.left is None}
        silent = {rank: now - each.beat_at for rank, each in running.items() if now - each.beat_at > limit}
        still = {rank: now - each.moved_at for rank, each in running.items() if now - each.moved_at > limit}
        waiting = {  # with the ranks that waited until their collective failed
            rank: now - each.moved_at
            for rank, each in self._observed.items()
            if each.progress.left is None or each.progress.cut_off
        }
        waiting_long = {rank: seconds for rank, seconds in waiting.items() if seconds > limit}
        loading = {rank: seconds for rank, seconds in still.items() if running[rank].progress.doing == LOADING}
        for ranks, fault in (
            (silent, "sent no sign of life"),
            (self._late_ranks(still, waiting_long), "kept the others waiting"),
            (self._late_ranks(loading, waiting), "kept the others waiting"),
            (loading, "stood still"),
        ):
            if ranks:
                return self._describe(ranks, fault)
        return None

    def find_lost(self, now: float, patience: float, silence: float) -> str | None:
        """A sentence on a rank that is gone while every other waits; None when there is none.

        Some backends (NCCL, HCCL) let a collective with a lost rank wait without an error. patience: seconds for which the
        others stand still after a rank failed. silence: the same, and for which a rank sent no sign of life.
        """
        failed = {
            rank: each for rank, each in self._observed.items() if each.progress.left and not each.progress.cut_off
        }
        running = {rank: each for rank, each in self._observed.items() if each.progress.left is None}
        silent = {rank: now - each.beat_at for rank, each in running.items() if now - each.beat_at > silence}
        still = min((now - each.moved_at for rank, each in running.items() if rank not in silent), default=0.0)
        for rank, each in failed.items():
            if min(still, now - each.moved_at) > patience:
                return f"rank {rank}: failed, {each.progress.describe()}: {each.progress.left}"
        return self._describe(silent, "sent no sign of life") if silent and still > silence else None

    def is_silent(self, rank: int, now: float, limit: float) -> str | None:
        """A sentence if this rank has sent no sign of life for more than `limit` seconds; otherwise None."""
        observed = self._observed[rank]
        silent = observed.progress.left is None and now - observed.beat_at > limit
        return self._describe({rank: now - observed.beat_at}, "sent no sign of life") if silent else None

    def first_failure(self, now: float, silence: float) -> str | None:
        """After a collective failed: the rank that failed first, or that was silent for `silence` seconds; None so far."""
        suspects = {
            rank: each
            for rank, each in self._observed.items()
            if not each.progress.cut_off and each.progress.left != ""
        }
        for rank, each in suspects.items():
            if each.progress.left:
                return f"rank {rank}: failed, {each.progress.describe()}: {each.progress.left}"
        silent = {rank: now - each.beat_at for rank, each in suspects.items() if now - each.beat_at >= silence}
        return self._describe(silent, "sent no sign of life") if silent else None

    def missing_from_collective(self) -> str | None:
        """The ranks that live but did not enter the collective that failed on the others; None when all entered."""
        failed = {rank: 0.0 for rank, each in self._observed.items() if each.progress.cut_off}
        others = {rank: 0.0 for rank, each in self._observed.items() if not each.progress.cut_off}
        late = self._late_ranks(others, failed)
        return _join(
            [f"rank {rank}: kept the others waiting, {self._observed[rank].progress.describe()}" for rank in late]
        )

    def _late_ranks(self, ranks: Mapping[int, float], waiting: Mapping[int, float]) -> dict[int, float]:
        """The `ranks` that `waiting` ranks wait for, in a collective of a group of both, and that wait for no rank.

        Both arguments give the seconds since a rank progressed; the result gives the seconds it kept another waiting.
        """
        # Per group: the most collectives that a waiting rank has entered, with its seconds, and the fewest of `ranks`.
        most: dict[str, tuple[int, float]] = {}
        fewest: dict[str, int] = {}
        for rank, seconds in waiting.items():
            for group, count in self._observed[rank].progress.collectives.items():
                most[group] = max(most.get(group, (count, seconds)), (count, seconds))
        for rank in ranks:
            for group, count in self._observed[rank].progress.collectives.items():
                fewest[group] = min(fewest.get(group, count), count)
        late: dict[int, float] = {}
        waits_for_none: dict[int, float] = {}
        for rank, seconds in ranks.items():
            entered = self._observed[rank].progress.collectives
            delays = [min(seconds, most[group][1]) for group in entered if entered[group] < most.get(group, (0,))[0]]
            if delays:
                late[rank] = max(delays)
                if all(count <= fewest[group] for group, count in entered.items()):
                    waits_for_none[rank] = late[rank]
        return waits_for_none or late  # the late ranks may all wait for each other, in different groups

    def _describe(self, seconds: Mapping[int, float], fault: str) -> str | None:
        return _join(
            [
                f"rank {rank}: {fault} for {seconds[rank]:.0f} s, {self._observed[rank].progress.describe()}"
                for rank in seconds
            ]
        )


def _join(sentences: Sequence[str], shown: int = 3) -> str | None:
    more = len(sentences) - shown
    return "; ".join(sentences[:shown]) + (f"; and {more} more" if more > 0 else "") or None
