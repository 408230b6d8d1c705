"""Embeddings of timestep and caption, and fixed sine position tables.

Shapes: B batch, L text tokens, C caption channels, D width.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import GELUTanh, Mlp
from torch import Tensor, nn

from opensora.models.shapes import ShapeError, divides


def timestep_features(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """[B] -> float32 [B, width]: cosines first, then sines (Vaswani et al. 2017, sec. 3.5); odd widths end in zero.

    `t` may be fractional. The product stays in float32: bf16 would round timesteps above 256.
    """
    half = width // 2
    rates = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * rates
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


def small_linear(linear: nn.Module) -> None:
    """Weights N(0, 0.02), bias zero."""
    assert isinstance(linear, nn.Linear)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)


def shut_linear(linear: nn.Module) -> None:
    """All zero: the branch that ends here starts as nothing."""
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


class TimestepEmbedder(nn.Module):
    """Timestep -> sine features -> two-layer perceptron, in the dtype of its weights."""

    def __init__(self, hidden_size: int, frequency_width: int = 256):
        super().__init__()
        self.frequency_width = frequency_width
        self.mlp = nn.Sequential(
            nn.Linear(frequency_width, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t_B: Tensor) -> Tensor:
        features = timestep_features(t_B, self.frequency_width)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))

    def initialise(self) -> None:
        """Small weights, so that conditioning starts weak."""
        for linear in (self.mlp[0], self.mlp[2]):
            small_linear(linear)


class CaptionEmbedder(nn.Module):
    """Projects caption states to the model's width; knows the null caption.

    `y_embedding` [L, C] is the null caption in caption space. It is a buffer, not a parameter: never trained.
    """

    def __init__(self, in_channels: int, hidden_size: int, token_num: int):
        super().__init__()
        self.y_proj = Mlp(in_channels, hidden_size, hidden_size, act_layer=GELUTanh)
        self.register_buffer("y_embedding", torch.randn(token_num, in_channels) / in_channels**0.5)
        self.y_embedding: Tensor

    def initialise(self) -> None:
        small_linear(self.y_proj.fc1)
        small_linear(self.y_proj.fc2)

    def null(self, n: int) -> Tensor:
        """The null caption [n, 1, L, C]."""
        return self.y_embedding.expand(n, 1, -1, -1)

    def forward(self, y_B1LC: Tensor, drop_B: Tensor | None = None) -> Tensor:
        """Embed captions, [B, 1, L, D]; samples with `drop_B` True take the null caption."""
        if drop_B is not None:
            if y_B1LC.shape[-2:] != self.y_embedding.shape:
                raise ShapeError(
                    f"caption: {list(y_B1LC.shape[-2:])} tokens x channels; dropping captions needs exactly "
                    f"{list(self.y_embedding.shape)} (model_max_length x caption_channels), so pad them to that length"
                )
            drop = drop_B.to(device=y_B1LC.device).bool()[:, None, None, None]
            y_B1LC = torch.where(drop, self.y_embedding.to(y_B1LC.dtype), y_B1LC)
        return self.y_proj(y_B1LC)


def sine_table(width: int, positions: NDArray) -> NDArray:
    """float64 [len(positions), width]: sines, then cosines, of position / 10000^(2i / width)."""
    rates = 1.0 / 10000 ** (np.arange(divides("position table: width", width, 2), dtype=np.float64) / (width / 2.0))
    angles = positions.reshape(-1).astype(np.float64)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def temporal_table(width: int, frames: int, scale: float = 1.0) -> NDArray:
    """float64 [frames, width]; position = frame / scale."""
    return sine_table(width, np.arange(frames) / scale)


def spatial_table(width: int, rows: int, columns: int, scale: float = 1.0, base_size: int | None = None) -> NDArray:
    """float64 [rows * columns, width], row by row: the first half encodes the column, the second half the row.

    Coordinates are index / scale, and with `base_size` also times base_size / (rows or columns). They are float32,
    as in the tables that released weights were trained with.
    """
    divides("position table: hidden_size", width, 4)
    r = np.arange(rows, dtype=np.float32) / scale
    c = np.arange(columns, dtype=np.float32) / scale
    if base_size is not None:
        r, c = r * (base_size / rows), c * (base_size / columns)
    column, row = np.meshgrid(c, r)
    return np.concatenate([sine_table(width // 2, column), sine_table(width // 2, row)], axis=1)
