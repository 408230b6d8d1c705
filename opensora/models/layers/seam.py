"""Seams: places in a model where parallel/ may install an exchange between ranks.

Without one a `Seam` is the identity and a `TileMap` is a loop. Neither has parameters, so no weight name depends on them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from torch import Tensor, nn

TileOp = Callable[[Callable[[Tensor], Tensor], Iterable[Tensor]], Iterator[Tensor]]


class Seam(nn.Module):
    """Marks a place in a forward pass; `op` is what happens there, and None means nothing.

    split: after it each rank holds a slice along `dim`. gather: after it `dim` is whole again.
    switch: after it `dim` is whole and `swap_dim` is split instead. `axis` says if the switch trades the tokens for frames
    or for heads, or takes them back. A module that has switches of both axes leaves the choice to parallel/.
    A dimension means the same at all seams of a model: 2 the tokens that are split, 1 frames, -2 heads.
    Raises ValueError when a switch has no `swap_dim`, or another kind has one.
    """

    def __init__(
        self,
        kind: Literal["split", "gather", "switch"],
        dim: int,
        swap_dim: int | None = None,
        axis: Literal["frames", "heads"] = "frames",
    ):
        super().__init__()
        if (kind == "switch") != (swap_dim is not None):
            raise ValueError(f"Seam: kind {kind!r} with swap_dim={swap_dim}; only a switch has a second dimension")
        self.kind, self.dim, self.swap_dim, self.axis = kind, dim, swap_dim, axis
        self.op: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.op is None else self.op(x)

    def extra_repr(self) -> str:
        return f"{self.kind}, dim={self.dim}" + (f", swap_dim={self.swap_dim}" if self.swap_dim is not None else "")


class TileMap(nn.Module):
    """Encodes or decodes independent pieces, such as an autoencoder's tiles. Results keep the order of the pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.op: TileOp = map

    def forward(self, code: Callable[[Tensor], Tensor], pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        return self.op(code, pieces)
