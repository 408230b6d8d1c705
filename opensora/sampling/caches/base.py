"""The base of all caches over denoising steps.

A cache is installed on a denoiser from outside, for one clip: modules get another `forward` and get their own back. Its
state is kept for each copy of the batch that guidance makes (with the caption, without it), since a call may see some
of the copies only. All videos of a batch are skipped or computed together, and the one that changes most decides.

Shapes: B videos of a batch, T frames, S patches of a frame, D width; a call has a row for each video and copy.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opensora.interfaces import Denoiser
from opensora.parallel.sequence_parallel import own_tokens, sum_over_sharing_ranks

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """One call of the denoiser."""

    number: int  # of this clip, from 0
    last: bool
    copies: tuple[int, ...]  # that it sees, by their places in the batch that guidance repeats
    level: float  # of noise, from 0 (data) to 1


@dataclass
class Counts:
    """Parts of the denoiser that ran and that were skipped since the state was made."""

    unit: str  # of what is counted, in the plural
    ran: int = 0
    skipped: int = 0


class CacheState(ABC):
    """The state of a cache in one clip."""

    counts: Counts

    @abstractmethod
    def calling(self, call: Call) -> AbstractContextManager[None]:
        """Around each call of the denoiser."""


class StepCache(ABC):
    """A method with its thresholds. Registered in CACHES."""

    @abstractmethod
    def installed(self, model: Denoiser) -> AbstractContextManager[CacheState]:
        """Use this cache in all calls of `model` inside, with a fresh state."""


@contextmanager
def replaced_forwards(forwards: Sequence[tuple[nn.Module, Forward]]) -> Iterator[None]:
    """Give modules another `forward` for a while; hooks and `forward` of the class stay as they are."""
    before = [(module, module.__dict__.get("forward")) for module, _ in forwards]
    try:
        for module, forward in forwards:
            module.forward = forward
        yield
    finally:
        for module, own in before:
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own


class PerCopy:
    """Tensors kept for each copy of the batch."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def put(self, copies: Sequence[int], rows: Tensor) -> None:
        """Keep `rows`, whose first axis holds the copies one after the other."""
        self._kept |= dict(zip(copies, rows.chunk(len(copies)), strict=True))

    def get(self, copies: Sequence[int]) -> Tensor | None:
        """The rows of these copies; None where one of them was never kept."""
        if any(copy not in self._kept for copy in copies):
            return None
        kept = [self._kept[copy] for copy in copies]
        return kept[0] if len(kept) == 1 else torch.cat(kept)


def relative_change(model: nn.Module, now: Tensor, before: Tensor) -> Tensor:
    """Mean absolute difference over mean absolute value of `before`, per row, on the CPU: the same on all ranks of a group.

    now, before: [rows, T, S, D] as blocks see them, split over the ranks under sequence parallelism.
    """
    sums = [own_tokens(model, x.abs()).sum((1, 2, 3), dtype=torch.float32) for x in (now - before, before)]
    difference, size = sum_over_sharing_ranks(model, torch.stack(sums)).cpu()
    return torch.where(difference == 0, 0.0, difference / size)
