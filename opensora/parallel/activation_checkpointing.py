"""Activation checkpointing, installed from outside: the backward computes a block's activations again.

torch's composable `checkpoint` does it with hooks, so classes, parameter names and results stay as they are. Its better
known `checkpoint_wrapper` puts a module around the block, and every parameter name gets a prefix.
"""

from collections.abc import Iterable

from torch import nn
from torch.distributed._composable import checkpoint


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Make each block keep only its inputs while gradients are on. A second call for a block changes nothing."""
    for block in blocks:
        if not checkpoints_activations(block):
            checkpoint(block)


def checkpoints_activations(block: nn.Module) -> bool:
    """True if `checkpoint_activations` was called for this block."""
    return checkpoint.state(block) is not None
