"""First Block Cache: the first block is run at every step, and its difference decides about the others.

Source: ParaAttention's README (github.com/chengzeyi/ParaAttention) and diffusers' FirstBlockCacheConfig.
"""

from collections.abc import Callable

from torch import Tensor

from opensora.interfaces import Denoiser
from opensora.registry import CACHES
from opensora.sampling.caches.base import PerCopy, relative_change
from opensora.sampling.caches.block_residual import BlockCache, BlockResidual


class FirstBlockState(BlockResidual):
    """Keeps what the first block added in the last call that ran all blocks."""

    def __init__(self, model: Denoiser, threshold: float):
        super().__init__(model, threshold)
        self.first_residual = PerCopy()

    def run_first(self, forward: Callable[[], Tensor], x: Tensor) -> Tensor:
        self.counts.ran += 1
        self.start = forward()
        added, copies = self.start - x, self.call.copies
        before, residual = self.first_residual.get(copies), self.residual.get(copies)
        changes = None if before is None else relative_change(self.model, added, before)
        if residual is not None and changes is not None and bool((changes < self.threshold).all()):
            self.answer = self.start + residual
        else:
            self.first_residual.put(copies, added)
        return self.start


@CACHES.register_module()
class FirstBlockCache(BlockCache):
    """Run the first block and skip the others while what it adds changes little.

    threshold: mean absolute change of what the first block adds, as a share of its mean absolute value in the last call
        that ran all blocks, below which the others are skipped. 0 skips nothing; 0.05 to 0.2 are usual.
    """

    def __init__(self, threshold: float = 0.1):
        self.threshold = threshold

    def state(self, model: Denoiser) -> FirstBlockState:
        return FirstBlockState(model, self.threshold)
