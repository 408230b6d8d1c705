"""Places where parallel/ may step in: a seam, where a tensor may be cut over ranks, and pieces that ranks may share.

Here the first is the identity and the second a loop; neither has parameters.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from torch import Tensor, nn


class Seam(nn.Module):
    """Marks a place in a forward pass.

    split: from here on each rank holds a slice along `dim`. gather: from here on `dim` is whole again.
    switch: `dim` becomes whole and `other` is cut instead, `over` says whether that axis holds frames or heads (or gives
    it back). A module with switches over both leaves the choice to parallel/, which uses one sort and not the other.
    A number of an axis means the same at all seams of a model: 2 the tokens that are split, 1 frames, -2 heads.
    """

    def __init__(
        self,
        kind: Literal["split", "gather", "switch"],
        dim: int,
        other: int | None = None,
        over: Literal["frames", "heads"] = "frames",
    ):
        super().__init__()
        if (kind == "switch") != (other is not None):
            raise ValueError(f"Seam: kind {kind!r} with other={other}; only a switch names a second dimension")
        self.kind, self.dim, self.other, self.over = kind, dim, other, over

    def forward(self, x: Tensor) -> Tensor:
        return x

    def extra_repr(self) -> str:
        return f"{self.kind}, dim={self.dim}" + (f", other={self.other}" if self.other is not None else "")


class TileMap(nn.Module):
    """Codes pieces that do not depend on each other, as an autoencoder's tiles; results come in the pieces' order."""

    def forward(self, code: Callable[[Tensor], Tensor], pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        return map(code, pieces)
