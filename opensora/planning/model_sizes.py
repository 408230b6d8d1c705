"""Counts of a module's parameters."""

from torch import nn

from opensora.interfaces import Autoencoder, Denoiser
from opensora.parallel.step_costs import StepSizes


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def model_sizes(model: Denoiser | Autoencoder) -> StepSizes:
    """The sizes of a module with `checkpoint_blocks`, on one rank."""
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    blocks = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in model.checkpoint_blocks()]
    return StepSizes(
        trained=sum(trained),
        fixed=parameter_count(model) - sum(trained) + sum(buffer.numel() for buffer in model.buffers()),
        largest=max(trained),
        blocks=max(blocks, default=0),
        outside=sum(trained) - sum(blocks),
    )
