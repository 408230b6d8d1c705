"""Groups: sets of rows that are united pair by pair.

Shapes: N rows, P pairs.
"""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Groups:
    """Rows 0 to N - 1, each alone at first; `roots` [N] has one number for all rows of a group, its lowest row."""

    def __init__(self, count: int) -> None:
        self.roots = np.arange(count, dtype=np.int32 if count < 1 << 31 else np.int64)

    def copy(self) -> "Groups":
        """The same groups, to be united further."""
        other = Groups(0)
        other.roots = self.roots.copy()
        return other

    def apart(self, one: Rows, other: Rows) -> NDArray[np.bool_]:
        """[P]: which of the pairs are in two groups yet."""
        return self.roots[one] != self.roots[other]

    def unite(self, one: Rows, other: Rows) -> None:
        """Unite the groups of each pair, [P] and [P]."""
        while len(one):
            apart = self.apart(one, other)
            one, other = one[apart], other[apart]
            low, high = np.sort([self.roots[one], self.roots[other]], axis=0)
            np.minimum.at(self.roots, high, low)
            self._shorten()

    def _shorten(self) -> None:
        while True:
            shorter = self.roots[self.roots]
            if np.array_equal(shorter, self.roots):
                return
            self.roots = shorter
