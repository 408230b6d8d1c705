"""Recall and precision of cuts, against a list of true ones.

Run: python -m tools.scene_cut.accuracy scenes.csv accuracy.json --true cuts.txt
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from opensora import files
from opensora.datasets.table import read_table, require_columns
from opensora.errors import ConfigError, DataError, OpenSoraError
from opensora.files import expand_argument


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
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); a text with the frame number of a cut a line is needed"
        ) from error
    for line, text in enumerate(lines, 1):
        word = text.partition("#")[0].strip()
        if word:
            if not word.isdecimal():
                raise DataError(f"{path}:{line}: found {word!r}; the frame number of a cut is needed; correct the line")
            cuts.append(int(word))
    return sorted(cuts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.scene_cut.accuracy", description="Compare cuts with true ones."
    )
    parser.add_argument("scenes", metavar="SCENES", help="of one film, from tools.scene_cut.detect")
    parser.add_argument("output", metavar="OUT", help="frames and shares as JSON: .json")
    parser.add_argument(
        "--true", metavar="FILE", required=True, help="true cuts: a .txt with one frame a line, or a table"
    )
    parser.add_argument("--tolerance", type=int, default=1, help="frames (default: %(default)s)")
    options = parser.parse_args([expand_argument(word) for word in (sys.argv[1:] if argv is None else argv)])
    try:
        if not options.output.endswith(".json") or options.tolerance < 0:
            raise ConfigError(
                f"accuracy: OUT is {options.output!r}, --tolerance {options.tolerance}; allowed: a name that ends in .json, and "
                "0 frames or more; correct them"
            )
        result = cut_accuracy(read_cuts(options.scenes), read_cuts(options.true), options.tolerance)
        shares = {"recall": round(result.recall, 4), "precision": round(result.precision, 4)}
        with files.write_errors_as(DataError, options.output, "choose a writable place with free space"):
            files.atomic_write(options.output, lambda part: files.write_json(part, {**shares, **asdict(result)}))
    except OpenSoraError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{len(result.hits) + len(result.extra)} cuts: recall {shares['recall']}, precision {shares['precision']}")
    print(f"  missed: {result.missed}\n  no cuts: {result.extra}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
