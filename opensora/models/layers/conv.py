"""Convolutions over clips. Shapes: B batch, C channels, T H W frames/rows/columns."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.layers.kernels import kernels_for

_OPTIONS = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding"),
    *("dilation", "groups", "padding_mode"),
)


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` with zeros around the clip; the same state dict and, up to rounding, the same result.

    Where a device's own padding is wrong for an input (`Platform.pads_wrongly`), the zeros are written first. Where its
    gradient of the weights is (`Platform.misjudges_weights`), that of a convolution over single frames takes its place.
    """

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple)  # no caller here pads by a word such as "same"
        kernels, padding = kernels_for(x_BCTHW.device.type), self.padding
        if kernels.pads_wrongly is not None and kernels.pads_wrongly(x_BCTHW, self.kernel_size, padding):
            sides = [each for padding in reversed(padding) for each in (padding, padding)]  # F.pad: last axis first
            x_BCTHW, padding = F.pad(x_BCTHW, sides), (0, 0, 0)
        trained = torch.is_grad_enabled() and self.weight.requires_grad
        if trained and kernels.misjudges_weights is not None and kernels.misjudges_weights(x_BCTHW):
            return self._convolve(x_BCTHW, padding)
        return F.conv3d(x_BCTHW, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _convolve(self, x_BCTHW: Tensor, padding: tuple[int, ...]) -> Tensor:
        if self.groups != 1 or self.dilation != (1, 1, 1):
            raise NotImplementedError(f"Conv3d: groups={self.groups}, dilation={self.dilation}; only 1 is trained here")
        if padding[0]:
            x_BCTHW, padding = F.pad(x_BCTHW, (0, 0, 0, 0, padding[0], padding[0])), (0, *padding[1:])
        tensors = [x_BCTHW, self.weight, *([] if self.bias is None else [self.bias])]
        device = x_BCTHW.device.type
        if torch.is_autocast_enabled(device):  # it does not reach into an autograd function
            tensors = [each.to(torch.get_autocast_dtype(device)) for each in tensors]
        x, weight, bias = (*tensors, None)[:3]
        return _ConvolutionByFrames.apply(x, weight, bias, self.stride, padding)


class _ConvolutionByFrames(torch.autograd.Function):
    """A 3-D convolution whose weights get their gradient from a 2-D one, over the frames under the filter as channels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.outputs = stride, padding, None if bias is None else [len(bias)]
        return F.conv3d(x, weight, bias, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, [1, 1, 1], False, [0, 0, 0], 1, [True, False, False]
            )
        length, step = gradient.shape[2], stride[0]
        taps = [x[:, :, tap : tap + step * (length - 1) + 1 : step] for tap in range(weight.shape[2])]
        frames = torch.cat(taps, dim=1).transpose(1, 2).flatten(0, 1)  # [B*T, taps*C, H, W]
        flat = weight.transpose(1, 2).flatten(1, 2)  # [out, taps*C, rows, columns]
        _, flat_gradient, bias_gradient = torch.ops.aten.convolution_backward(
            gradient.transpose(1, 2).flatten(0, 1), frames, flat, ctx.outputs, stride[1:], padding[1:], [1, 1], False,
            [0, 0], 1, [False, True, ctx.outputs is not None],
        )  # fmt: skip
        weight_gradient = flat_gradient.unflatten(1, (weight.shape[2], -1)).transpose(1, 2)
        return x_gradient, weight_gradient, bias_gradient, None, None


def replace_convolutions(network: nn.Module) -> None:
    """Put this file's `Conv3d`, with the same parameters, in place of every `nn.Conv3d` below `network`."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv3d:
                options: dict[str, Any] = {name: getattr(child, name) for name in _OPTIONS}
                replacement = Conv3d(**options, bias=child.bias is not None, device="meta")
                replacement.weight, replacement.bias = child.weight, child.bias
                setattr(parent, name, replacement)
