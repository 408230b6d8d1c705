"""RowPlaces: where each row of a manifest stands, which may be one file or several."""

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray


class RowPlaces:
    """Files and lines of rows that are numbered from 0 through all files."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._begins: list[int] = []  # number of the first row of each file
        self._lines: list[NDArray[np.int64] | None] = []
        self._rows = 0

    def add(self, file: str, rows: int, lines: NDArray[np.int64] | None) -> None:
        """Add the rows of the next file. lines: first line of each; None: they are counted from 1."""
        self._files.append(file)
        self._begins.append(self._rows)
        self._lines.append(lines)
        self._rows += rows

    def location(self, index: int) -> str:
        """ "train.csv:7", for messages."""
        return "{}:{}".format(*self._place(index))

    def location_from(self, index: int, other: int) -> str:
        """The place of row `index` in a message about row `other`: "line 7" where both stand in one file."""
        file, line = self._place(index)
        return f"line {line}" if file == self._place(other)[0] else f"{file}:{line}"

    def _place(self, index: int) -> tuple[str, int]:
        file = bisect_right(self._begins, index) - 1
        lines, row = self._lines[file], index - self._begins[file]
        return self._files[file], row + 1 if lines is None else int(lines[row])
