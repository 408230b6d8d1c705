"""Norms and the fused forms that models use; `kernels.py` may replace them by a device's own kernels.

Shapes: D width, [B, 1, 1, D] a vector per sample, [B, T, 1, D] a vector per frame, d width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from opensora.models.layers.kernels import kernels_for
from opensora.models.layers.patch import at_least_float32


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Layer norm along the last axis (Ba et al. 2016, arXiv:1607.06450); weight and bias [D] or None."""
    fused = kernels_for(x.device.type).layer_norm
    if fused is not None:
        return fused(x, weight, bias, eps)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """layer_norm(x) * (1 + scale) + shift for x [B, T, S, D] and vectors [B or 1, T or 1, 1, D].

    A vector per sample is passed as the norm's weight and bias: one pass over the tokens instead of three, in forward
    and backward. Torch's norm takes one weight a call; where every call is a kernel launch, many vectors go another way.
    """
    kernels = kernels_for(x.device.type)
    if kernels.launches and scale.shape[:-1].numel() > 1:
        weight, bias = (vector.to(x.dtype) for vector in (1 + scale, shift))
        if kernels.layer_norm is not None:
            return torch.addcmul(bias, kernels.layer_norm(x, None, None, eps), weight)
        return ModulatedNorm.apply(x, bias, weight, eps)
    if scale.shape[1:-1].numel() > 1 or scale.shape[0] not in (1, x.shape[0]):
        return layer_norm(x, eps=eps) * (1 + scale) + shift
    # Under autocast the vectors come from a linear layer, narrower than the tokens: torch's norm needs one dtype.
    weight, bias = (vector.to(x.dtype).flatten(0, -2) for vector in (1 + scale, shift))
    if len(weight) == 1:
        return layer_norm(x, weight[0], bias[0], eps)
    return torch.stack([layer_norm(*sample, eps) for sample in zip(x, weight, bias, strict=True)])


class _NormContext(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    eps: float
    bias_shape: torch.Size


class ModulatedNorm(Function):
    """layer_norm(x) * weight + bias with weight and bias that broadcast to x: two kernels for all samples and frames.

    All have one type, the result too: autocast would widen the norm. The backward computes the norm again, so that
    nothing of the size of x but x itself is kept.
    """

    @staticmethod
    def forward(ctx: _NormContext, x: Tensor, bias: Tensor, weight: Tensor, eps: float) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
            ctx.save_for_backward(x, weight, mean, rstd)
            ctx.eps, ctx.bias_shape = eps, bias.shape
            return torch.addcmul(bias, normed, weight)

    @staticmethod
    def backward(ctx: _NormContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        normed = torch.native_layer_norm(x, x.shape[-1:], None, None, ctx.eps)[0]
        grad_weight = (grad * normed).sum_to_size(weight.shape)
        grad_x = torch.ops.aten.native_layer_norm_backward(
            grad * weight, x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )[0]
        return grad_x, grad.sum_to_size(ctx.bias_shape), grad_weight, None


class RMSNorm(nn.Module):
    """Root mean square norm of the last axis (Zhang & Sennrich 2019, arXiv:1910.07467), computed in float32 at least."""

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        fused = kernels_for(x.device.type).rms_norm
        if fused is not None:
            return fused(x, self.weight, self.eps)
        wide = at_least_float32(x)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight
