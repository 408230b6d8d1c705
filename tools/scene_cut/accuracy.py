"""Recall and precision of cuts, against a list of true ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora.datasets.table import read_table, require_columns
from opensora.errors import DataError


@dataclass(frozen=True)
class CutAccuracy:
    """Frame numbers of true cuts that were detected, that were missed, and of detected ones that are none."""

    hits: list[int]
    missed: list[int]
    extra: list[int]

    @property
    def recall(self) -> float:
        """Share of the true cuts that were detected; 1 where there are none."""
        return len(self.hits) / max(1, len(self.hits) + len(self.missed)) if self.hits or self.missed else 1.0

    @property
    def precision(self) -> float:
        """Share of the detected cuts that are true; 1 where none was detected."""
        return len(self.hits) / max(1, len(self.hits) + len(self.extra)) if self.hits or self.extra else 1.0


def cut_accuracy(detected: Sequence[int], true: Sequence[int], tolerance: int = 1) -> CutAccuracy:
    """Pairs of one detected and one true cut that are at most `tolerance` frames apart, in order; the rest is wrong."""
    hits, missed, extra = list[int](), list[int](), list[int]()
    ahead = iter(sorted(detected))
    current = next(ahead, None)
    for cut in sorted(true):
        while current is not None and current < cut - tolerance:
            extra.append(current)
            current = next(ahead, None)
        if current is not None and current <= cut + tolerance:
            hits.append(cut)
            current = next(ahead, None)
        else:
            missed.append(cut)
    return CutAccuracy(hits, missed, extra + ([current] if current is not None else []) + list(ahead))


def read_cuts(path: str) -> list[int]:
    """First frames of the shots behind each cut: of a table that tools.scene_cut.detect wrote, or one number a line.

    In text, words behind # are not read. Raises DataError with the line of anything else.
    """
    if not path.endswith(".txt"):
        table = read_table(path)
        require_columns(path, table.columns, ("start_frame",))
        return sorted({int(float(row["start_frame"])) for row in table.rows} - {0})
    cuts = []
    for line, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        word = text.partition("#")[0].strip()
        if word:
            if not word.isdecimal():
                raise DataError(f"{path}:{line}: found {word!r}; the frame number of a cut is needed; correct the line")
            cuts.append(int(word))
    return sorted(cuts)
