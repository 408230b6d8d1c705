"""Counts of the rows of a data set: how many came in and were kept, and which were dropped for which reason."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from opensora.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 3  # messages per reason in the table; all of them are in `dropped`
MAX_MESSAGES = 100  # messages per reason that are made; further rows are counted


@dataclass(frozen=True)
class Dropped:
    """One row that is not used."""

    reason: str  # a few words that rows share, such as "empty caption"
    message: str  # one sentence that names the file and the line
    more: int = 0  # rows of the same reason that this one stands for as well


class DroppedRows:
    """A list of dropped rows: of each reason the first `MAX_MESSAGES`, and a count of the others in the last of these."""

    def __init__(self) -> None:
        self.rows: list[Dropped] = []
        self._messages: Counter[str] = Counter()
        self._last: dict[str, int] = {}  # reason -> position in `rows`

    def add(self, reason: str, positions: NDArray[np.integer], message: Callable[[int], str]) -> None:
        """Add the rows at these positions; `message` is called only for those that get a message."""
        listed = positions[: MAX_MESSAGES - self._messages[reason]]
        for position in listed:
            self._last[reason] = len(self.rows)
            self.rows.append(Dropped(reason, message(int(position))))
        self._messages[reason] += len(listed)
        if len(positions) > len(listed):
            last = self.rows[self._last[reason]]
            self.rows[self._last[reason]] = replace(last, more=last.more + len(positions) - len(listed))


@dataclass(frozen=True)
class Report:
    """Counts of one data set."""

    where: str  # the manifest, or the name of a synthetic data set
    rows: int
    kept: int
    dropped: dict[str, list[str]] = field(default_factory=dict)  # reason -> messages (the first MAX_MESSAGES)
    more: dict[str, int] = field(default_factory=dict)  # reason -> dropped rows without a message
    buckets: dict[str, int] = field(default_factory=dict)  # "frames x height x width" -> clips
    notes: list[str] = field(default_factory=list)  # sentences about what is not used though no row is dropped for it

    @classmethod
    def of(
        cls,
        where: str,
        kept: int,
        dropped: list[Dropped],
        buckets: dict[str, int] | None = None,
        notes: Sequence[str] = (),
    ) -> "Report":
        reasons: dict[str, list[str]] = {}
        more: dict[str, int] = {}
        for row in dropped:
            reasons.setdefault(row.reason, []).append(row.message)
            if row.more:
                more[row.reason] = more.get(row.reason, 0) + row.more
        return cls(where, kept + count_rows(dropped), kept, reasons, more, buckets or {}, list(notes))

    def count(self, reason: str) -> int:
        """Rows dropped for this reason."""
        return len(self.dropped[reason]) + self.more.get(reason, 0)

    def lines(self) -> list[str]:
        """The report as plain lines, for a log."""
        lines = [f"{self.where}: {self.rows} rows in, {self.kept} kept, {self.rows - self.kept} dropped"]
        lines += [f"  {size}: {clips} clips" for size, clips in self.buckets.items()]
        for reason, messages in self.dropped.items():
            count = self.count(reason)
            lines.append(f"  dropped, {reason}: {count}")
            lines += [f"    {message}" for message in messages[:SHOWN]]
            if count > SHOWN:
                lines.append(f"    ... and {count - SHOWN} more")
        return lines + [f"  note: {note}" for note in self.notes]

    def table(self) -> "Table":
        """The report as a table for a terminal."""
        from rich.table import Table

        table = Table("rows", "count", "which", title=self.where)
        table.add_row("in", str(self.rows), "")
        for reason, messages in self.dropped.items():
            count = self.count(reason)
            more = [f"... and {count - SHOWN} more"] if count > SHOWN else []
            table.add_row(f"dropped: {reason}", str(count), "\n".join(messages[:SHOWN] + more))
        table.add_row("kept", str(self.kept), "\n".join(f"{size}: {n} clips" for size, n in self.buckets.items()))
        for note in self.notes:
            table.add_row("note", "", note)
        return table

    def require_rows(self) -> None:
        """Raise DataError when nothing is left to train on."""
        if self.kept:
            return
        why = "; ".join(
            f"{reason}: {self.count(reason)}, first {messages[0]}" for reason, messages in self.dropped.items()
        )
        raise DataError(
            f"{self.where}: no usable row out of {self.rows}{f' ({why})' if why else ''}; "
            "training needs at least one; correct the rows or lower num_frames"
        )


def count_rows(dropped: list[Dropped]) -> int:
    return sum(1 + row.more for row in dropped)
