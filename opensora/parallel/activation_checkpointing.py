"""Activation checkpointing, put on from outside: a block's activations are recomputed in its backward."""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Make each block keep only its inputs while gradients are on; parameter names and results do not change."""
    for block in blocks:
        block.__class__ = _checkpointed(type(block))  # type: ignore[arg-type]


@functools.cache
def _checkpointed(block_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass under the same name: unlike a wrapped `forward` attribute it survives a deep copy of the block."""
    if getattr(block_class, "checkpoints_activations", False):
        return block_class

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        plain = functools.partial(block_class.forward, self)
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        return checkpoint(plain, *args, use_reentrant=False, **kwargs)

    return type(block_class.__name__, (block_class,), {"forward": forward, "checkpoints_activations": True})
