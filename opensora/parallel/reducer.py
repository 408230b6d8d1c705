"""Averages gradients over data ranks during the last backward of an optimizer step.

Every rank hands its gradients on in one fixed order, a missing one as zeros, so ranks can never wait for different
things: ranks may touch different parameters, and what no rank touched keeps no gradient.
"""

from collections.abc import Callable, Iterator, Sequence
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
    """Averages gradients over a group in buckets of `bucket_bytes`, each sent while the backward still runs."""

    def __init__(self, parameters: Sequence[nn.Parameter], bucket_bytes: int, group: collectives.Group = None):
        self._parameters = list(parameters)
        self._group = group
        self._bucket_bytes = bucket_bytes
        # a backward reaches the last layers first
        self._order = OrderedEmitter(self._parameters[::-1], self._add)
        self._bucket: list[nn.Parameter] = []
        self._used: set[int] = set()
        self._in_flight: list[tuple[dist.Work, Tensor, list[nn.Parameter]]] = []
        self._active = False
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    @contextmanager
    def averaging(self, last: bool) -> Iterator[None]:
        """Open it around a forward and backward; with `last`, what was added since the step began is averaged."""
        self._active = last and collectives.world_size(self._group) > 1
        yield
        if self._active:
            self._order.flush()
            self._send()
            self._receive()
            self._active = False

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        if self._active:
            self._order.ready(parameter)

    def _add(self, parameter: nn.Parameter) -> None:
        if self._bucket and self._bucket[0].dtype != parameter.dtype:
            self._send()
        self._bucket.append(parameter)
        if sum(each.numel() * each.element_size() for each in self._bucket) >= self._bucket_bytes:
            self._send()

    def _send(self) -> None:
        if not self._bucket:
            return
        parts = []
        for parameter in self._bucket:
            if parameter.grad is not None:
                self._used.add(id(parameter))
            parts.append((torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten())
        flat = torch.cat(parts).div_(collectives.world_size(self._group))
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        self._in_flight.append((work, flat, self._bucket))
        self._bucket = []

    def _receive(self) -> None:
        used = torch.tensor([int(id(parameter) in self._used) for parameter in self._parameters])
        counts = collectives.sum_over_ranks(used, self._group)
        used_anywhere = {id(parameter) for parameter, count in zip(self._parameters, counts) if count}
        for work, flat, bucket in self._in_flight:
            work.wait()
            parts = flat.split([parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                # untouched on every rank: no gradient, so that the optimizer leaves it alone as it does on one rank
                parameter.grad = part.view_as(parameter) if id(parameter) in used_anywhere else None
        self._in_flight = []
        self._used = set()
