"""Convolutions over clips. Shapes: B batch, C channels, T H W frames/rows/columns."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.layers.kernels import kernels_for

_OPTIONS = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("dilation", "groups", "padding_mode"),
)


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` with zeros around the clip; the same state dict and, up to rounding, the same result.

    Where a device's own padding is wrong for an input (`Platform.pads_wrongly`), the zeros are written first.
    """

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple)  # no caller here pads by a word such as "same"
        pads_wrongly = kernels_for(x_BCTHW.device.type).pads_wrongly
        if pads_wrongly is None or not pads_wrongly(x_BCTHW, self.kernel_size, self.padding):
            return super().forward(x_BCTHW)
        sides = [each for padding in reversed(self.padding) for each in (padding, padding)]  # F.pad: last axis first
        return F.conv3d(F.pad(x_BCTHW, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def replace_convolutions(network: nn.Module) -> None:
    """Put this file's `Conv3d`, with the same parameters, in place of every `nn.Conv3d` below `network`."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv3d:
                options: dict[str, Any] = {name: getattr(child, name) for name in _OPTIONS}
                replacement = Conv3d(**options, bias=child.bias is not None, device="meta")
                replacement.weight, replacement.bias = child.weight, child.bias
                setattr(parent, name, replacement)
