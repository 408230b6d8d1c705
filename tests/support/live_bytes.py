"""Bytes of live tensors, counted at every operation: the same on every machine and run."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Counts each storage that an operation gives, once, until it is freed. What was there before is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage(), before)
        return out

    def _count(self, storage: Any, before: set[int]) -> None:
        if storage in self._known or id(storage) in before:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.live -= size


def peak_bytes(action: Callable[[], Any]) -> int:
    """The most that tensors made by `action` held at one time."""
    counter = PeakBytes()
    with counter:
        action()
    return counter.peak
