"""How far every rank is, and what follows from that when the job stands still: who holds the others up.

Pure bookkeeping on times that the caller gives; `watch.py` fills it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

LOADING = "loading the data of"
AT_WORK = "at work on"
STARTING = "starting"


@dataclass(frozen=True)
class Progress:
    """What one rank says of itself."""

    beat: int  # grows while the process runs, whatever its main thread does
    doing: str = STARTING
    step: int = 0  # optimizer step, counted from 1
    exchanges: int = 0  # collectives of all ranks that it has entered
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
        most = max((seen.progress.exchanges for seen in running.values()), default=0)
        silent = {rank: now - seen.beat_at for rank, seen in running.items() if now - seen.beat_at > limit}
        still = {rank: now - seen.moved_at for rank, seen in running.items() if now - seen.moved_at > limit}
        late = {rank: for_seconds for rank, for_seconds in still.items() if running[rank].progress.exchanges < most}
        loading = {rank: for_seconds for rank, for_seconds in still.items() if running[rank].progress.doing == LOADING}
        for found, what in (
            (silent, "sent no sign of life"),
            (late, "kept the others waiting"),
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
        """Which ranks live, but did not come to the exchange that failed on the others."""
        there = [f"rank {rank}: kept the others waiting, {seen.progress.where()}"
                 for rank, seen in self._seen.items() if not seen.progress.cut_off]  # fmt: skip
        return _list(there) if 0 < len(there) < len(self._seen) else None

    def _say(self, found: Mapping[int, float], what: str) -> str:
        return _list(
            [f"rank {rank}: {what} for {found[rank]:.0f} s, {self._seen[rank].progress.where()}" for rank in found]
        )


def _list(what: Sequence[str], shown: int = 3) -> str:
    more = len(what) - shown
    return "; ".join(what[:shown]) + (f"; and {more} more" if more > 0 else "")
