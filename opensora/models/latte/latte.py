"""Latte as in Open-Sora 1.0: DiT's blocks attend within a frame (even numbers) and along time (odd numbers).

Shapes: B batch, T frames, S patches of a frame, D width.
Source: Ma et al. 2024, arXiv:2401.03048, variant 1. Key names and numbers follow Open-Sora 1.0.
"""

from torch import Tensor

from opensora.models.dit.dit import DiT
from opensora.models.layers.attention import SelfAttention
from opensora.models.stdit.attention import SpatialAttention
from opensora.registry import MODELS, register_preset


class TemporalAttention(SelfAttention):
    """Self-attention along time at each patch position."""

    def forward(self, x_BTSD: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x_BTSD.transpose(1, 2)).transpose(1, 2)


@MODELS.register_module()
class Latte(DiT):
    """Latte; arguments as in DiT.

    no_temporal_pos_emb: accepted as in Open-Sora 1.0 and, as there, without effect: frames always get their position,
    once, before the first temporal block.
    """

    def attention(self, block: int) -> SelfAttention:
        return (TemporalAttention if block % 2 else SpatialAttention)(self.hidden_size, self.num_heads)

    def run_blocks(self, x_BTSD: Tensor, c_BD: Tensor) -> Tensor:
        x_BTSD = self.split_seq(x_BTSD)
        for i, block in enumerate(self.blocks):
            if i == 1:
                x_BTSD = x_BTSD + self.pos_embed_temporal[:, :, None]
            x_BTSD = block(x_BTSD, c_BD)
        return x_BTSD


register_preset(MODELS, "Latte-XL/2", Latte, depth=28, hidden_size=1152, num_heads=16, patch_size=(1, 2, 2))
