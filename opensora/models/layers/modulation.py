"""adaLN modulation with one table per layer (PixArt's adaLN-single; Chen et al. 2023, arXiv:2310.00426, sec. 2.3).

Shapes: B batch, T frames, S patches of one frame, D width. Modulation vectors are [B, 1, 1, D], or [B, T, 1, D] when
frames differ (`x_mask`: conditioning frames are modulated as at timestep 0).
"""

import torch
from torch import Tensor, nn

from opensora.models.layers.norm import norm_modulate


def gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch in one pass."""
    return torch.addcmul(x, gate, branch)


def per_frame(x_mask_BT: Tensor, active: Tensor, still: Tensor) -> Tensor:
    """[B, T, 1, D]: `active` where the frame is denoised (True), `still` where it is a condition."""
    return torch.where(x_mask_BT.bool()[:, :, None, None], active, still)


def modulation_vectors(
    table_RD: Tensor, time_BRD: Tensor, x_mask_BT: Tensor | None = None, still_BRD: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Rows of table + time, each [B, 1, 1, D]; with `x_mask_BT` each [B, T, 1, D], from `still_BRD` where it is False."""
    vectors = (table_RD + time_BRD)[:, :, None, None].unbind(1)
    if x_mask_BT is None or still_BRD is None:
        return vectors
    pairs = zip(vectors, modulation_vectors(table_RD, still_BRD), strict=True)
    return tuple(per_frame(x_mask_BT, active, still) for active, still in pairs)


class ScaleShiftTable(nn.Module):
    """Keeps the pieces that a table plus a time embedding gives. Subclasses own `scale_shift_table` [rows, D]."""

    def __init__(self, rows: int, dim: int):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(rows, dim) / dim**0.5)

    def vectors(
        self, time_BRD: Tensor, x_mask_BT: Tensor | None = None, still_BRD: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """`modulation_vectors` of the own table."""
        return modulation_vectors(self.scale_shift_table, time_BRD, x_mask_BT, still_BRD)


class FinalLayer(ScaleShiftTable):
    """Norm, modulation and the projection to patches. `t_BD` is the plain timestep embedding."""

    def __init__(self, dim: int, out_features: int):
        super().__init__(2, dim)
        self.linear = nn.Linear(dim, out_features)

    def forward(
        self, x_BTSD: Tensor, t_BD: Tensor, x_mask_BT: Tensor | None = None, t0_BD: Tensor | None = None
    ) -> Tensor:
        shift, scale = self.vectors(t_BD[:, None])
        x = norm_modulate(x_BTSD, shift, scale)
        if x_mask_BT is not None and t0_BD is not None:
            # Conditioning frames are normalised and modulated a second time: wrong, but weights were trained so.
            shift, scale = self.vectors(t0_BD[:, None])
            x = per_frame(x_mask_BT, x, norm_modulate(x, shift, scale))
        return self.linear(x)


class AdaFinalLayer(nn.Module):
    """Norm, modulation by a layer of its own, and the projection to patches (DiT; arXiv:2212.09748, fig. 3)."""

    def __init__(self, dim: int, out_features: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.linear = nn.Linear(dim, out_features)

    def forward(self, x_BTSD: Tensor, c_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c_BD)[:, None, None].chunk(2, dim=-1)
        return self.linear(norm_modulate(x_BTSD, shift, scale))
