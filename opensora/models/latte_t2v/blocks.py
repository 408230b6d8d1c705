"""Spatial and temporal blocks of LatteT2V.

Shapes: B batch, T frames including appended images, F frames of the clip, S patches of a frame, L text
tokens, P captions, D width.
"""

from torch import Tensor

from opensora.models.latte_t2v.attention import CaptionCrossAttention, CompressedSelfAttention
from opensora.models.latte_t2v.embed import FeedForward
from opensora.models.latte_t2v.positions import Rotate
from opensora.models.layers.modulation import ScaleShiftTable, gated_residual
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import TextContext


class SpatialBlock(ScaleShiftTable):
    """Attention within each frame, cross-attention without norm or gate, and MLP on [B, T, S, D]."""

    def __init__(self, dim: int, num_heads: int, bias: bool, factor: int, eps: float):
        super().__init__(6, dim)
        self.eps = eps
        self.attn1 = CompressedSelfAttention(dim, num_heads, bias, factor, along="patches")
        self.attn2 = CaptionCrossAttention(dim, num_heads, bias)
        self.ff = FeedForward(dim)
        # Between blocks parallel/ keeps patches split; only attention within a frame needs them whole.
        self.a2a_to_frames = Seam("switch", dim=2, swap_dim=1)
        self.a2a_to_patches = Seam("switch", dim=1, swap_dim=2)

    def forward(
        self,
        x_BTSD: Tensor,
        text: TextContext,
        time_B6D: Tensor,
        grid: tuple[int, int],
        images: int = 0,
        patch_mask: Tensor | None = None,
        rotate: Rotate | None = None,
    ) -> Tensor:
        """patch_mask: bool [B * T, 1, 1, keys], True = attend."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time_B6D)
        frames = self.a2a_to_frames(norm_modulate(x_BTSD, shift1, scale1, self.eps))
        x = gated_residual(x_BTSD, gate1, self.a2a_to_patches(self.attn1(frames, rotate, patch_mask, grid)))
        x = x + self.attn2(x, text, images)
        return gated_residual(x, gate2, self.ff(norm_modulate(x, shift2, scale2, self.eps)))


class TemporalBlock(ScaleShiftTable):
    """Attention along time at each patch position, and MLP on [B, F, S, D]."""

    def __init__(self, dim: int, num_heads: int, bias: bool, factor: int, eps: float):
        super().__init__(6, dim)
        self.eps = eps
        self.attn1 = CompressedSelfAttention(dim, num_heads, bias, factor, along="frames")
        self.ff = FeedForward(dim)

    def forward(self, x_BFSD: Tensor, time_B6D: Tensor, rotate: Rotate | None = None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time_B6D)
        places = norm_modulate(x_BFSD, shift1, scale1, self.eps).transpose(1, 2)
        x = gated_residual(x_BFSD, gate1, self.attn1(places, rotate).transpose(1, 2))
        return gated_residual(x, gate2, self.ff(norm_modulate(x, shift2, scale2, self.eps)))
