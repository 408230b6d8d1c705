"""Averages gradients over data ranks during the last backward of an optimizer step.

torch's DistributedDataParallel decides before the forward whether a backward will be the last one, and trips over
parameters that a rank's samples do not touch. Here every rank hands its gradients on in one fixed order, a missing
one as zeros, so ranks can never wait for different things.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora.parallel import collectives


class FixedOrder:
    """Passes parameters to `emit` in one order on every rank, each as soon as it and all before it are ready."""

    def __init__(self, parameters: Sequence[nn.Parameter], emit: Callable[[nn.Parameter], None]):
        self._parameters = list(parameters)
        self._place = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        self._emit = emit
        self._ready = [False] * len(self._parameters)
        self._next = 0

    def mark(self, parameter: nn.Parameter) -> None:
        """The gradient of `parameter` is complete."""
        self._ready[self._place[id(parameter)]] = True
        while self._next < len(self._parameters) and self._ready[self._next]:
            self._emit_next()

    def flush(self) -> None:
        """The backward is over: pass on the rest, ready or not, and begin again."""
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
        self._order = FixedOrder(self._parameters[::-1], self._add)
        self._bucket: list[nn.Parameter] = []
        self._used: set[int] = set()
        self._flying: list[tuple[dist.Work, Tensor, list[nn.Parameter]]] = []
        self._active = False
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of `loss`; with `last`, average what was added since the step began."""
        self.begin(last)
        loss.backward()
        self.end()

    def begin(self, last: bool) -> None:
        """Before a backward of someone else's."""
        self._active = last and collectives.world_size(self._group) > 1

    def end(self) -> None:
        """After it."""
        if self._active:
            self._order.flush()
            self._send()
            self._receive()
            self._active = False

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        if self._active:
            self._order.mark(parameter)

    def _add(self, parameter: nn.Parameter) -> None:
        if self._bucket and self._bucket[0].dtype != parameter.dtype:
            self._send()
        self._bucket.append(parameter)
        if sum(each.numel() * each.element_size() for each in self._bucket) >= self._bucket_bytes:
            self._send()

    def _send(self) -> None:
        if not self._bucket:
            return
        pieces = []
        for parameter in self._bucket:
            if parameter.grad is not None:
                self._used.add(id(parameter))
            pieces.append((torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten())
        flat = torch.cat(pieces).div_(collectives.world_size(self._group))
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        self._flying.append((work, flat, self._bucket))
        self._bucket = []

    def _receive(self) -> None:
        used = torch.tensor([int(id(parameter) in self._used) for parameter in self._parameters])
        counts = collectives.sum_over_ranks(used, self._group)
        used_anywhere = {id(parameter) for parameter, count in zip(self._parameters, counts) if count}
        for work, flat, bucket in self._flying:
            work.wait()
            pieces = flat.split([parameter.numel() for parameter in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                # untouched on every rank: no gradient, so that the optimizer leaves it alone as it does on one rank
                parameter.grad = piece.view_as(parameter) if id(parameter) in used_anywhere else None
        self._flying = []
        self._used = set()
