"""Pieces of a video that the ranks of a group decode together. Put on from outside, by filling a model's `TileMap`.

Each rank codes every n-th piece, so that the work of a decoder is shared; every rank gets every result, bit for bit what
one rank makes. At most n results exist at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora.models.layers.seam import TileMap
from opensora.parallel import collectives

_MOST_DIMENSIONS = 8
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def shard_tiles(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Have the ranks of `group` (None = all ranks) share the pieces of every later call of `model`, which is returned.

    Every rank must call it with the same inputs, without gradients. Nothing changes in a group of one, or for a model
    that codes everything in one piece.
    """
    if collectives.world_size(group) > 1:
        for module in model.modules():
            if isinstance(module, TileMap):
                module.__class__ = _SharedPieces
                cast(_SharedPieces, module).group = group
    return model


class _SharedPieces(TileMap):
    """In place of Pieces' class."""

    group: dist.ProcessGroup | None

    def forward(self, code: Callable[[Tensor], Tensor], pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        if torch.is_grad_enabled():
            yield from map(code, pieces)  # what other ranks computed has no gradient
            return
        size, own = collectives.world_size(self.group), dist.get_rank(self.group)
        source = iter(pieces)
        while batch := list(islice(source, size)):
            mine = code(batch[own]) if own < len(batch) else None
            for rank, (shape, dtype) in enumerate(self._layouts(mine, batch[0].device)[: len(batch)]):
                whole = mine if rank == own and mine is not None else batch[0].new_empty(shape, dtype=dtype)
                whole = whole.contiguous()
                collectives.broadcast_from(whole, rank, self.group)
                yield whole
                del whole  # while the next one is received

    def _layouts(self, mine: Tensor | None, device: torch.device) -> list[tuple[list[int], torch.dtype]]:
        """(shape, type) of every rank's result: tiles at a border are smaller."""
        row = torch.full((2 + _MOST_DIMENSIONS,), 0, dtype=torch.int64, device=device)
        if mine is not None:
            row[: 2 + mine.ndim] = torch.tensor([_DTYPES.index(mine.dtype), mine.ndim, *mine.shape])
        rows = collectives.gather_rows(row, self.group).tolist()
        return [(row[2 : 2 + row[1]], _DTYPES[row[0]]) for row in rows]
