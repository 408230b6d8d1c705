"""TeaCache: all blocks are skipped while the input of the first one, modulated by the timestep, changes little.

Source: Liu et al. 2024, arXiv:2411.19108, eq. 4 to 7.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.interfaces import Denoiser
from opensora.models.latte_t2v.attention import CompressedSelfAttention
from opensora.models.layers.attention import SelfAttention
from opensora.registry import CACHES
from opensora.sampling.caches.base import CacheState, PerCopy, relative_change, replaced_forwards
from opensora.sampling.caches.block_residual import BlockCache, BlockResidual


class _Skip(Exception):
    """Leaves the first block at its attention: the modulated input exists nowhere else, and no model need know of this."""


class TeaState(BlockResidual):
    """Adds up the rescaled changes since the last call that ran the blocks."""

    def __init__(self, model: Denoiser, threshold: float, coefficients: Sequence[float]):
        super().__init__(model, threshold)
        self.rescale = np.poly1d(list(coefficients))
        self.modulated = PerCopy()  # of the call before
        self.accumulated = PerCopy()  # [B] each

    def run_first(self, forward: Callable[[], Tensor], x: Tensor) -> Tensor:
        self.start = x
        try:
            self.last = forward()
        except _Skip:
            residual = self.residual.get(self.call.copies)
            assert residual is not None
            self.answer = x + residual
            self.counts.skipped += 1
            return self.answer
        self.counts.ran += 1
        return self.last

    def attend(self, forward: Callable[..., Tensor], modulated: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The first block's attention, which sees the modulated input; raises _Skip where the blocks are skipped."""
        if self._skips(modulated):
            raise _Skip
        return forward(modulated, *args, **kwargs)

    def _skips(self, modulated: Tensor) -> bool:
        copies = self.call.copies
        before, accumulated = self.modulated.get(copies), self.accumulated.get(copies)
        self.modulated.put(copies, modulated)
        if before is not None and accumulated is not None and not self.call.last:
            change = relative_change(self.model, modulated, before).double().numpy()
            accumulated = accumulated + torch.from_numpy(self.rescale(change).clip(min=0))
            self.accumulated.put(copies, accumulated)
            if self.residual.get(copies) is not None and bool((accumulated < self.threshold).all()):
                return True
        self.accumulated.put(copies, torch.zeros(len(modulated), dtype=torch.float64))
        return False


@CACHES.register_module()
class TeaCache(BlockCache):
    """Skip all blocks while the sum of the changes of the modulated input is small. The first and the last call run all.

    threshold: of that sum; a change is the mean absolute difference to the call before as a share of the mean absolute
        value. 0 skips nothing; 0.05 to 0.3 are usual.
    coefficients: of a polynomial that turns a change of the input into one of the output, the highest power first; it is
        fitted for each model. The default leaves changes as they are; values below 0 count as 0.
    """

    def __init__(self, threshold: float = 0.1, coefficients: Sequence[float] = (1.0, 0.0)):
        if not coefficients:
            raise ConfigError(
                "cache.coefficients: none; allowed: one number or more; (1, 0) leaves changes as they are"
            )
        self.threshold, self.coefficients = threshold, coefficients

    def state(self, model: Denoiser) -> TeaState:
        return TeaState(model, self.threshold, self.coefficients)

    @contextmanager
    def installed(self, model: Denoiser) -> Iterator[CacheState]:
        attention = first_attention(model)
        with super().installed(model) as state:
            assert isinstance(state, TeaState)
            with replaced_forwards([(attention, partial(state.attend, attention.forward))]):
                yield state


def first_attention(model: Denoiser) -> nn.Module:
    """The attention whose input is the modulated input of the first block."""
    block = model.checkpoint_blocks()[0]
    return next(each for each in block.modules() if isinstance(each, SelfAttention | CompressedSelfAttention))
