"""Skip a denoiser's blocks where their work was nearly the same a call ago, and add the difference that they made then."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from opensora.interfaces import Denoiser
from opensora.sampling.caches.base import CacheState, Call, Counts, PerCopy, StepCache, replaced_forwards


class BlockResidual(CacheState):
    """The state of caches that skip all blocks of a call, or all but the first.

    The difference between the tokens behind the last block and those where skipping begins is kept from the last call
    that ran all blocks. In a call that skips, every block returns the tokens of the end: the last one's count, whatever
    the model does between two blocks.
    """

    def __init__(self, model: Denoiser, threshold: float):
        self.model, self.threshold = model, threshold
        self.counts = Counts("blocks")
        self.residual = PerCopy()
        self._begin()

    def _begin(self) -> None:
        self.first = True  # the next block is the first of its call
        self.start: Tensor | None = None  # the tokens where skipping begins
        self.last: Tensor | None = None  # the tokens behind the last block
        self.answer: Tensor | None = None  # these tokens in a call that skips

    @contextmanager
    def calling(self, call: Call) -> Iterator[None]:
        self.call = call
        self._begin()
        yield
        if self.answer is None and self.start is not None and self.last is not None:
            self.residual.put(call.copies, self.last - self.start)
        self._begin()

    def run_block(self, forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A block's `forward` on tokens x, or what it would give."""
        if self.answer is not None:
            self.counts.skipped += 1
            return self.answer
        if self.first:
            self.first = False
            return self.run_first(partial(forward, x, *args, **kwargs), x)
        self.counts.ran += 1
        self.last = forward(x, *args, **kwargs)
        return self.last

    @abstractmethod
    def run_first(self, forward: Callable[[], Tensor], x: Tensor) -> Tensor:
        """The first block on tokens x; sets `start`, and where the call skips `answer`."""


class BlockCache(StepCache):
    """A cache whose state is a `BlockResidual`."""

    @abstractmethod
    def state(self, model: Denoiser) -> BlockResidual: ...

    @contextmanager
    def installed(self, model: Denoiser) -> Iterator[CacheState]:
        state = self.state(model)
        with replaced_forwards(
            [(block, partial(state.run_block, block.forward)) for block in model.checkpoint_blocks()]
        ):
            yield state
