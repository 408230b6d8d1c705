"""Averages gradients over data ranks during the last backward of an optimizer step.

Every rank hands its gradients on in one fixed order, a missing one as zeros, so ranks can never wait for different
things: ranks may touch different parameters, and what no rank touched keeps no gradient.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora.parallel import collectives


class OrderedEmitter:
    """Passes parameters to `emit` in one order on every rank, each as soon as it and all before it are ready."""

    def __init__(self, parameters: Sequence[nn.Parameter], emit: Callable[[nn.Parameter], None]):
        self._parameters = list(parameters)
        self._position = {id(parameter): position for position, parameter in enumerate(self._parameters)}
        self._emit = emit
        self._ready = [False] * len(self._parameters)
        self._next = 0

    def ready(self, parameter: nn.Parameter) -> None:
        """The gradient of `parameter` is complete."""
        self._ready[self._position[id(parameter)]] = True
        while self._next < len(self._parameters) and self._ready[self._next]:
            self._emit_next()

    def flush(self) -> None:
        """The backward is over: emit the rest, ready or not, and begin again."""
        while self._next < len(self._parameters):
            self._emit_next()
        self._ready = [False] * len(self._parameters)
        self._next = 0

    def _emit_next(self) -> None:
        self._emit(self._parameters[self._next])
        self._next += 1


class Reducer:
    """Averages gradients in buckets of `bucket_bytes`, each sent while the backward still runs.

    groups: id of a parameter -> the group over which it is averaged; None, and any parameter that is not in it: all ranks.
    All groups share one order. Two communicators whose collectives start in another order on another rank may wait for
    each other forever (NCCL).
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        bucket_bytes: int,
        groups: Mapping[int, collectives.Group] | None = None,
    ):
        groups = groups or {}
        group_of = {id(each): groups.get(id(each)) for each in parameters}
        sizes = {group: collectives.world_size(group) for group in dict.fromkeys(group_of.values())}
        self._sizes = {group: size for group, size in sizes.items() if size > 1}
        self._group_of = group_of
        self._parameters = [each for each in parameters if group_of[id(each)] in self._sizes]
        self._bucket_bytes = bucket_bytes
        # a backward reaches the last layers first
        self._order = OrderedEmitter(self._parameters[::-1], self._add)
        self._buckets: dict[collectives.Group, list[nn.Parameter]] = {group: [] for group in self._sizes}
        self._used: set[int] = set()
        self._in_flight: list[tuple[dist.Work, Tensor, list[nn.Parameter]]] = []
        self._active = False
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    @contextmanager
    def averaging(self, last: bool) -> Iterator[None]:
        """Open it around a forward and backward; with `last`, what was added since the step began is averaged."""
        self._active = last
        yield
        if self._active:
            self._order.flush()
            for group in self._buckets:
                self._send(group)
            self._receive()
            self._active = False

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        if self._active:
            self._order.ready(parameter)

    def _add(self, parameter: nn.Parameter) -> None:
        group = self._group_of[id(parameter)]
        bucket = self._buckets[group]
        if bucket and bucket[0].dtype != parameter.dtype:
            self._send(group)
        self._buckets[group].append(parameter)
        if sum(each.numel() * each.element_size() for each in self._buckets[group]) >= self._bucket_bytes:
            self._send(group)

    def _send(self, group: collectives.Group) -> None:
        bucket = self._buckets[group]
        if not bucket:
            return
        parts = []
        for parameter in bucket:
            if parameter.grad is not None:
                self._used.add(id(parameter))
            parts.append((torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten())
        flat = torch.cat(parts).div_(self._sizes[group])
        work = dist.all_reduce(flat, group=group, async_op=True)
        self._in_flight.append((work, flat, bucket))
        self._buckets[group] = []

    def _receive(self) -> None:
        used_anywhere = set().union(*(self._used_in(group) for group in self._buckets))
        for work, flat, bucket in self._in_flight:
            work.wait()
            parts = flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                # untouched on every rank: no gradient, so that the optimizer leaves it alone as it does on one rank
                parameter.grad = part.view_as(parameter) if id(parameter) in used_anywhere else None
        self._in_flight = []
        self._used = set()

    def _used_in(self, group: collectives.Group) -> set[int]:
        """Ids of the parameters averaged over `group` that one of its ranks used."""
        ids = [id(each) for each in self._parameters if self._group_of[id(each)] is group]
        counts = collectives.sum_over_ranks(torch.tensor([int(each in self._used) for each in ids]), group)
        return {each for each, count in zip(ids, counts, strict=True) if count}
