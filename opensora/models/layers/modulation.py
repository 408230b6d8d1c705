"""adaLN modulation with one table per layer (PixArt's adaLN-single; Chen et al. 2023, arXiv:2310.00426, sec. 2.3).

Shapes: B batch, T frames, S patches of one frame, D width. Modulation vectors are [B, 1, 1, D], or [B, T, 1, D] when
frames differ (`x_mask`: conditioning frames are modulated as at timestep 0).
"""

import torch
from torch import Tensor, nn

from opensora.models.layers.norm import norm_modulate


def gated_residual(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch in one pass."""
    return torch.addcmul(x, gate, branch)


def per_frame(x_mask_BT: Tensor, noised: Tensor, clean: Tensor) -> Tensor:
    """`noised` in frames where the mask is True, `clean` in conditioning frames; broadcast to [B, T, 1 or S, D]."""
    return torch.where(x_mask_BT.bool()[:, :, None, None], noised, clean)


def modulation_vectors(
    table_RD: Tensor, time_BRD: Tensor, x_mask_BT: Tensor | None = None, time0_BRD: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Rows of table + time, each [B, 1, 1, D]; with `x_mask_BT` each [B, T, 1, D], from `time0_BRD` where it is False."""
    vectors = (table_RD + time_BRD)[:, :, None, None].unbind(1)
    if x_mask_BT is None or time0_BRD is None:
        return vectors
    pairs = zip(vectors, modulation_vectors(table_RD, time0_BRD), strict=True)
    return tuple(per_frame(x_mask_BT, noised, clean) for noised, clean in pairs)


class ScaleShiftTable(nn.Module):
    """Owns `scale_shift_table` [rows, D]: the learned part of the modulation, to which the time embedding is added."""

    def __init__(self, rows: int, dim: int):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(rows, dim) / dim**0.5)

    def modulation(
        self, time_BRD: Tensor, x_mask_BT: Tensor | None = None, time0_BRD: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """`modulation_vectors` of this table."""
        return modulation_vectors(self.scale_shift_table, time_BRD, x_mask_BT, time0_BRD)


class FinalLayer(ScaleShiftTable):
    """Norm, modulation and the projection to patches. t_BD: the timestep embedding."""

    def __init__(self, dim: int, out_features: int):
        super().__init__(2, dim)
        self.linear = nn.Linear(dim, out_features)

    def forward(
        self, x_BTSD: Tensor, t_BD: Tensor, x_mask_BT: Tensor | None = None, t0_BD: Tensor | None = None
    ) -> Tensor:
        shift, scale = self.modulation(t_BD[:, None])
        x = norm_modulate(x_BTSD, shift, scale)
        if x_mask_BT is not None and t0_BD is not None:
            # Conditioning frames are normalized and modulated a second time: wrong, but weights were trained so.
            shift, scale = self.modulation(t0_BD[:, None])
            x = per_frame(x_mask_BT, x, norm_modulate(x, shift, scale))
        return self.linear(x)


class AdaFinalLayer(nn.Module):
    """Norm, modulation by its own layer, and the projection to patches (DiT; arXiv:2212.09748, fig. 3)."""

    def __init__(self, dim: int, out_features: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.linear = nn.Linear(dim, out_features)

    def forward(self, x_BTSD: Tensor, c_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c_BD)[:, None, None].chunk(2, dim=-1)
        return self.linear(norm_modulate(x_BTSD, shift, scale))
