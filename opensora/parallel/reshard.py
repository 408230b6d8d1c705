"""Resharding of flat tensors: from the ranges that a plugin gives each rank to the even ones of checkpoints, and back."""

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from opensora.parallel import collectives

Range = tuple[int, int]  # first element, one past the last
ShardRanges = Mapping[str, Sequence[Range]]  # name -> the range of the flat tensor that each rank holds, in rank order


def chunk_ranges(rows: int, row_numel: int = 1) -> list[Range]:
    """The flat ranges of the ranks when torch.chunk splits a tensor of `rows` rows, each of `row_numel` elements."""
    length = collectives.shard_length(rows)
    edges = [min(rank * length, rows) * row_numel for rank in range(collectives.world_size() + 1)]
    return list(itertools.pairwise(edges))


def redistribute(pieces: Mapping[str, Tensor], have: ShardRanges, want: ShardRanges) -> dict[str, Tensor]:
    """This rank's pieces, sharded by `have` -> new tensors sharded by `want`, in one all-to-all. All ranks call.

    The pieces have one dtype and one device, and the same names on every rank.
    """
    names, here, ranks = list(pieces), collectives.rank(), range(collectives.world_size())
    if not names:
        return {}
    parcels = [
        [pieces[name][_within(_common(have[name][here], want[name][other]), have[name][here])] for name in names]
        for other in ranks
    ]
    lengths = [[_length(_common(have[name][other], want[name][here])) for name in names] for other in ranks]
    sent = torch.cat([part for parcel in parcels for part in parcel])
    received = sent.new_empty(sum(map(sum, lengths)))
    if len(ranks) == 1:
        received.copy_(sent)
    else:
        out = [sum(part.numel() for part in parcel) for parcel in parcels]
        dist.all_to_all_single(received, sent, [sum(each) for each in lengths], out)
    result = {name: sent.new_empty(_length(want[name][here])) for name in names}
    parts = iter(received.split([length for each in lengths for length in each]))
    for other in ranks:
        for name in names:
            common = _common(have[name][other], want[name][here])
            result[name][_within(common, want[name][here])] = next(parts)
    return result


def _common(a: Range, b: Range) -> Range:
    start = max(a[0], b[0])
    return start, max(start, min(a[1], b[1]))


def _length(each: Range) -> int:
    return each[1] - each[0]


def _within(part: Range, whole: Range) -> slice:
    """The place of a range of the flat tensor in a piece of it."""
    return slice(part[0] - whole[0], part[1] - whole[0]) if _length(part) else slice(0, 0)
