"""timm's MLP and stochastic depth, as all blocks here use them. timm takes seconds to import, so building imports it."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from timm.layers import Mlp


def mlp(dim: int, hidden: int, out: int | None = None) -> "Mlp":
    """Two linear layers, `fc1` and `fc2`, with the tanh approximation of GELU between them; out None: `dim`."""
    from timm.layers import GELUTanh, Mlp

    return Mlp(dim, hidden, out, act_layer=GELUTanh)


def stochastic_depth(probability: float) -> nn.Module:
    """Leaves out a residual branch for a sample with that probability, in training; 0: nothing."""
    from timm.layers import DropPath

    return DropPath(probability) if probability > 0 else nn.Identity()
