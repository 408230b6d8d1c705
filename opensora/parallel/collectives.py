"""Collectives that the rest of the system uses. Sums only: gloo's average is not reliable.

Without a `group` they are among all ranks.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Group = dist.ProcessGroup | None


def world_size(group: Group = None) -> int:
    """Ranks in the group; 1 when there is none."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def rank() -> int:
    """This rank; 0 when there is no group."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_ranks(tensor: Tensor, group: Group = None) -> Tensor:
    """The sum of every rank's `tensor`, of the same shape and device on all; the argument stays as it is."""
    total = tensor.detach().clone()
    if world_size(group) > 1:
        dist.all_reduce(total, group=group)
    return total


def barrier() -> None:
    """Wait for every rank; under gloo the error after a timeout names the missing ranks."""
    if world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.GLOO:
        dist.monitored_barrier(wait_all_ranks=True)
    else:
        dist.barrier()


def broadcast_object(value: T, group: Group = None) -> T:
    """The first rank's `value`, on every rank; it must pickle."""
    box: list[Any] = [value]
    if world_size(group) > 1:
        dist.broadcast_object_list(box, src=first_rank(group), group=group)
    return box[0]


def broadcast_from(tensor: Tensor, source: int, group: Group = None) -> None:
    """Overwrite `tensor` with that of rank `source` of the group, counted in the group."""
    if world_size(group) > 1:
        dist.broadcast(tensor, src=source if group is None else dist.get_global_rank(group, source), group=group)


def first_rank(group: Group = None) -> int:
    """The global rank of the group's first rank."""
    return 0 if group is None else dist.get_global_rank(group, 0)


def gather_objects(value: T, group: Group = None) -> list[T]:
    """Every rank's `value` in rank order, on every rank; they must pickle."""
    if world_size(group) == 1:
        return [value]
    values: list[Any] = [None] * world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def gather_rows(row: Tensor, group: Group = None) -> Tensor:
    """Every rank's `row` of the same shape, in rank order: [ranks, *row.shape], on every rank."""
    rows = row.new_empty(world_size(group), row.numel())
    if world_size(group) == 1:
        rows.copy_(row.reshape(1, -1))
    else:
        dist.all_gather_into_tensor(rows.view(-1), row.contiguous().view(-1), group=group)
    return rows.view(-1, *row.shape)


def any_rank(flag: bool, group: Group = None) -> bool:
    """True if `flag` is true on at least one rank."""
    count = torch.tensor(int(flag))  # on the CPU: every backend here carries CPU tensors through gloo
    return bool(sum_over_ranks(count, group).item())


def broadcast_tensors(tensors: list[Tensor]) -> None:
    """Overwrite every rank's tensors with rank 0's, so that all start from the same numbers."""
    if world_size() > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, src=0)
            tensor.detach().copy_(whole)


def shard_length(numel: int, size: int | None = None) -> int:
    """Elements per rank of a flat tensor that torch.chunk splits; the last ranks may hold fewer."""
    return -(-numel // (size or world_size()))


def shard(flat: Tensor) -> Tensor:
    """This rank's piece of a flat tensor: a view, possibly empty."""
    length = shard_length(flat.numel())
    return flat[rank() * length : (rank() + 1) * length]


def gather_shards(piece: Tensor, numel: int) -> Tensor:
    """The inverse of `shard`: [numel], on every rank."""
    if world_size() == 1:
        return piece
    length = shard_length(numel)
    padded = torch.nn.functional.pad(piece, (0, length - piece.numel()))
    whole = padded.new_empty(length * world_size())
    dist.all_gather_into_tensor(whole, padded)
    return whole[:numel]


def gather_into(whole: Tensor, piece: Tensor) -> None:
    """Fill the flat `whole` with every rank's `piece`, all of one length."""
    if world_size() == 1:
        whole.copy_(piece)
    else:
        dist.all_gather_into_tensor(whole, piece)
