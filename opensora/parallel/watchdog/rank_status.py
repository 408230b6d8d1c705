"""How far every rank is, and what follows from that when the job stands still: who holds the others up.

Pure bookkeeping on times that the caller gives; `watch.py` fills it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

LOADING = "loading the data of"
AT_WORK = "at work on"
STARTING = "starting"


@dataclass(frozen=True)
class Progress:
    """What one rank says of itself."""

    beat: int  # grows while the process runs, whatever its main thread does
    doing: str = STARTING
    step: int = 0  # optimizer step, counted from 1
    exchanges: Mapping[str, int] = field(default_factory=dict)  # group of ranks -> collectives of it entered here
    left: str | None = None  # why it will exchange nothing any more: "" at a good end, otherwise the error
    cut_off: bool = False  # an exchange failed here; another rank is to blame

    def text(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str | bytes) -> "Progress":
        return Progress(**json.loads(text))

    def where(self) -> str:
        return self.doing if self.doing == STARTING else f"{self.doing} step {self.step}"

    def moved_from(self, other: "Progress") -> bool:
        """Whether its main thread did anything since."""
        return (self.doing, self.step, self.exchanges) != (other.doing, other.step, other.exchanges)


class Clock:
    """Seconds that pass while this process runs: a pause in which it was suspended, and the others with it, is left out.

    longest: seconds between two looks; what goes beyond is such a pause.
    """

    def __init__(self, now: float, longest: float):
        self._looked, self._longest, self._missed = now, longest, 0.0

    def read(self, now: float) -> float:
        """The time on this clock when the system's says `now`."""
        pause, self._looked = now - self._looked, now
        if pause > self._longest:
            self._missed += pause
        return now - self._missed


@dataclass
class _Seen:
    progress: Progress
    beat_at: float  # when its beat last changed, on the observer's clock
    moved_at: float  # when it last moved


class Table:
    """What an observer has heard of all ranks. Times are seconds of the observer's own clock."""

    def __init__(self, ranks: int, now: float):
        self._seen = {rank: _Seen(Progress(beat=-1), now, now) for rank in range(ranks)}

    def note(self, heard: Mapping[int, Progress], now: float) -> None:
        for rank, progress in heard.items():
            seen = self._seen[rank]
            if progress.moved_from(seen.progress):
                seen.moved_at = now
            if progress.beat != seen.progress.beat:
                seen.beat_at = now
            seen.progress = progress

    def standstill(self, now: float, limit: float) -> str | None:
        """Which ranks hold the job up for more than `limit` seconds, and how; None when none does."""
        running = {rank: seen for rank, seen in self._seen.items() if seen.progress.left is None}
        silent = {rank: now - seen.beat_at for rank, seen in running.items() if now - seen.beat_at > limit}
        still = {rank: now - seen.moved_at for rank, seen in running.items() if now - seen.moved_at > limit}
        waiting = {  # those as well who waited until their exchange failed
            rank: now - seen.moved_at
            for rank, seen in self._seen.items()
            if seen.progress.left is None or seen.progress.cut_off
        }
        long = {rank: seconds for rank, seconds in waiting.items() if seconds > limit}
        loading = {rank: seconds for rank, seconds in still.items() if running[rank].progress.doing == LOADING}
        for found, what in (
            (silent, "sent no sign of life"),
            (self._awaited(still, long), "kept the others waiting"),
            (self._awaited(loading, waiting), "kept the others waiting"),
            (loading, "stood still"),
        ):
            if found:
                return self._say(found, what)
        return None

    def silent(self, rank: int, now: float, limit: float) -> str | None:
        """Whether this rank has sent no sign of life for more than `limit` seconds, in words; None when it has."""
        seen = self._seen[rank]
        quiet = seen.progress.left is None and now - seen.beat_at > limit
        return self._say({rank: now - seen.beat_at}, "sent no sign of life") if quiet else None

    def culprit(self, now: float, silence: float) -> str | None:
        """After an exchange failed: who failed first, or is gone, not heard of for `silence` seconds; None so far."""
        there = {
            rank: seen for rank, seen in self._seen.items() if not seen.progress.cut_off and seen.progress.left != ""
        }
        for rank, seen in there.items():
            if seen.progress.left:
                return f"rank {rank}: failed, {seen.progress.where()}: {seen.progress.left}"
        gone = {rank: now - seen.beat_at for rank, seen in there.items() if now - seen.beat_at >= silence}
        return self._say(gone, "sent no sign of life") if gone else None

    def behind(self) -> str | None:
        """Which ranks live, but did not come to the exchange that failed on the others; None when all came."""
        failed = {rank: 0.0 for rank, seen in self._seen.items() if seen.progress.cut_off}
        others = {rank: 0.0 for rank, seen in self._seen.items() if not seen.progress.cut_off}
        late = [f"rank {rank}: kept the others waiting, {self._seen[rank].progress.where()}"
                for rank in self._awaited(others, failed)]  # fmt: skip
        return _list(late) if late else None

    def _awaited(self, ranks: Mapping[int, float], waiting: Mapping[int, float]) -> dict[int, float]:
        """Those of `ranks` whom `waiting` ones wait for in a collective of a group of both, and who wait for nobody.

        Both say for how many seconds a rank has not moved; the result, for how many it kept another waiting.
        """
        most: dict[str, tuple[int, float]] = {}  # group -> collectives entered, and how long who entered it stands
        least: dict[str, int] = {}
        for rank, seconds in waiting.items():
            for group, count in self._seen[rank].progress.exchanges.items():
                most[group] = max(most.get(group, (count, seconds)), (count, seconds))
        for rank in ranks:
            for group, count in self._seen[rank].progress.exchanges.items():
                least[group] = min(least.get(group, count), count)
        late: dict[int, float] = {}
        first: dict[int, float] = {}
        for rank, seconds in ranks.items():
            entered = self._seen[rank].progress.exchanges
            kept = [min(seconds, most[group][1]) for group in entered if entered[group] < most.get(group, (0,))[0]]
            if kept:
                late[rank] = max(kept)
                if all(count <= least[group] for group, count in entered.items()):
                    first[rank] = late[rank]
        return first or late  # each may wait for another, in turn

    def _say(self, found: Mapping[int, float], what: str) -> str:
        return _list(
            [f"rank {rank}: {what} for {found[rank]:.0f} s, {self._seen[rank].progress.where()}" for rank in found]
        )


def _list(what: Sequence[str], shown: int = 3) -> str:
    more = len(what) - shown
    return "; ".join(what[:shown]) + (f"; and {more} more" if more > 0 else "")
