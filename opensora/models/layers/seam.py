"""A seam: where parallel/ may cut a tensor over ranks. Here it is the identity and has no parameters."""

from typing import Literal

from torch import Tensor, nn


class Seam(nn.Module):
    """Marks a place in a forward pass.

    split: from here on each rank holds a slice along `dim`. gather: from here on `dim` is whole again.
    switch: `dim` becomes whole and `other` is cut instead.
    """

    def __init__(self, kind: Literal["split", "gather", "switch"], dim: int, other: int | None = None):
        super().__init__()
        if (kind == "switch") != (other is not None):
            raise ValueError(f"Seam: kind {kind!r} with other={other}; only a switch names a second dimension")
        self.kind, self.dim, self.other = kind, dim, other

    def forward(self, x: Tensor) -> Tensor:
        return x

    def extra_repr(self) -> str:
        return f"{self.kind}, dim={self.dim}" + (f", other={self.other}" if self.other is not None else "")
