"""Tile parallelism: the ranks of a group encode or decode the pieces of a video together. It fills a model's `TileMap`.

Each rank codes every n-th piece, so the ranks share the work of a decoder. Every rank gets every result, bit for bit what
one rank makes. At most n results exist at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora.models.layers.seam import TileMap
from opensora.parallel import collectives

_MAX_DIMENSIONS = 8
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def shard_tiles(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Have the ranks of `group` (None = all ranks) share the pieces of every later call of `model`, which is returned.

    Every rank must call it with the same inputs, without gradients. Nothing changes in a group of one, or for a model
    that codes everything in one piece.
    """
    if collectives.world_size(group) > 1:
        for module in model.modules():
            if isinstance(module, TileMap):
                module.op = SharedTiles(group)
    return model


class SharedTiles:
    """The `op` of a `TileMap` whose pieces the ranks of `group` share."""

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedTiles":
        return self  # a copy of the model lives in the same group

    def __call__(self, code: Callable[[Tensor], Tensor], pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        if torch.is_grad_enabled():
            yield from map(code, pieces)  # a result that another rank computed has no gradient
            return
        size, rank = collectives.world_size(self.group), dist.get_rank(self.group)
        source = iter(pieces)
        while batch := list(islice(source, size)):
            result = code(batch[rank]) if rank < len(batch) else None
            for owner, (shape, dtype) in enumerate(self._layouts(result, batch[0].device)[: len(batch)]):
                whole = result if owner == rank and result is not None else batch[0].new_empty(shape, dtype=dtype)
                whole = whole.contiguous()
                collectives.broadcast_from(whole, owner, self.group)
                yield whole
                del whole  # before the next one is received

    def _layouts(self, result: Tensor | None, device: torch.device) -> list[tuple[list[int], torch.dtype]]:
        """(shape, dtype) of every rank's result: tiles at a border are smaller."""
        row = torch.full((2 + _MAX_DIMENSIONS,), 0, dtype=torch.int64, device=device)
        if result is not None:
            row[: 2 + result.ndim] = torch.tensor([_DTYPES.index(result.dtype), result.ndim, *result.shape])
        rows = collectives.gather_rows(row, self.group).tolist()
        return [(row[2 : 2 + row[1]], _DTYPES[row[0]]) for row in rows]
