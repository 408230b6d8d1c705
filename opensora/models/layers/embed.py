"""Embeddings of timestep and caption, and fixed sine-cosine position tables.

Shapes: B batch, L text tokens, C caption channels, D width.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.layers.mlp import Mlp
from opensora.models.shape_checks import ShapeError, exact_div


def timestep_features(t: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """[B] -> float32 [B, width]: cosines first, then sines (Vaswani et al. 2017, sec. 3.5); odd widths end in zero.

    `t` may be fractional. The product stays in float32: bf16 would round timesteps above 256.
    """
    half = width // 2
    rates = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * rates
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


def normal_init_(linear: nn.Module) -> None:
    """Weights N(0, 0.02), bias zero."""
    assert isinstance(linear, nn.Linear)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)


def zero_init_(linear: nn.Module) -> None:
    """Weights and bias zero: the branch that ends here adds nothing at first."""
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


class TimestepEmbedder(nn.Module):
    """Timestep -> sine features -> two-layer MLP, in the dtype of its weights."""

    def __init__(self, hidden_size: int, frequency_width: int = 256):
        super().__init__()
        self.frequency_width = frequency_width
        self.mlp = nn.Sequential(
            nn.Linear(frequency_width, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, t_B: Tensor) -> Tensor:
        features = timestep_features(t_B, self.frequency_width)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))

    def init_weights(self) -> None:
        """Weights N(0, 0.02), so that conditioning starts weak."""
        for linear in (self.mlp[0], self.mlp[2]):
            normal_init_(linear)


class SizeEmbedder(TimestepEmbedder):
    """Numbers that describe a clip (pixels, frames, rate, aspect ratio), each embedded like a timestep."""

    def embed(self, sizes_bk: Tensor, batch: int) -> Tensor:
        """[b] or [b, k] -> [batch, k * D]; with b < batch all rows are repeated, as guidance needs.

        Raises ShapeError when b does not divide the batch.
        """
        if sizes_bk.ndim == 1:
            sizes_bk = sizes_bk[:, None]
        if batch % len(sizes_bk):
            raise ShapeError(
                f"clip sizes: {len(sizes_bk)} rows for {batch} samples; their number must divide the batch"
            )
        sizes_Bk = sizes_bk.repeat(batch // len(sizes_bk), 1)
        return self(sizes_Bk.flatten()).view(batch, -1)

    def zero_init_output_(self) -> None:
        """Zero output, for models that start from weights without this condition."""
        normal_init_(self.mlp[0])
        zero_init_(self.mlp[2])


def any_true(drop_B: Tensor | None) -> bool:
    """True if any sample drops its condition; False on the meta device, where runs are planned."""
    return drop_B is not None and not drop_B.is_meta and bool(drop_B.any())


class LabelEmbedder(nn.Module):
    """Classes by number; `num_classes` itself is the null class, which exists only where labels are ever dropped."""

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float):
        super().__init__()
        self.num_classes = num_classes
        self.has_null = dropout_prob > 0
        self.embedding_table = nn.Embedding(num_classes + self.has_null, hidden_size)

    def init_weights(self) -> None:
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def null(self, n: int) -> Tensor:
        """Null class labels [n]. Raises ShapeError when the model was built without a null class."""
        if not self.has_null:
            raise ShapeError(
                "labels: class_dropout_prob=0 leaves no null class; guidance needs one, so raise it above 0"
            )
        return torch.full((n,), self.num_classes, device=self.embedding_table.weight.device)

    def forward(self, labels_B: Tensor, drop_B: Tensor | None = None) -> Tensor:
        """[B] -> [B, D]; samples with `drop_B` True take the null class."""
        labels_B = labels_B.long()
        if drop_B is not None and any_true(drop_B):
            labels_B = torch.where(drop_B.to(labels_B.device).bool(), self.null(len(labels_B)), labels_B)
        return self.embedding_table(labels_B)


class CaptionEmbedder(nn.Module):
    """Projects caption states to the model's width; holds the null caption.

    `y_embedding` [L, C] is the null caption in caption space. It is a buffer, not a parameter: never trained.
    """

    def __init__(self, in_channels: int, hidden_size: int, token_num: int):
        super().__init__()
        self.y_proj = Mlp(in_channels, hidden_size, hidden_size)
        self.register_buffer("y_embedding", torch.randn(token_num, in_channels) / in_channels**0.5)
        self.y_embedding: Tensor

    def init_weights(self) -> None:
        normal_init_(self.y_proj.fc1)
        normal_init_(self.y_proj.fc2)

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


def text_mask(mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """A caption mask as bool [batch, length], True = token counts; None stays None.

    Takes [b, L] or [b, 1, 1, L]. With b < batch all rows are repeated, so that under guidance the null caption is cut
    to the length of the prompt: released weights are sampled this way. A row without any token would make
    attention NaN; it attends to all tokens instead. Raises ShapeError.
    """
    if mask is None:
        return None
    mask_bL = mask.reshape(mask.shape[0], -1) != 0
    if mask_bL.shape[1] != length or batch % mask_bL.shape[0]:
        raise ShapeError(
            f"text mask: shape {list(mask.shape)} for {batch} captions of {length} tokens; "
            "its length must be that of the captions, and its rows must divide the batch"
        )
    mask_BL = mask_bL.repeat(batch // mask_bL.shape[0], 1)
    return mask_BL | ~mask_BL.any(dim=1, keepdim=True)


def embed_captions(
    embedder: CaptionEmbedder, y_B1LC: Tensor, mask: Tensor | None, drop_B: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Keys of cross-attention: embedded captions [B, L, D] and their mask, bool [B, L]."""
    y_BLD = embedder(y_B1LC, drop_B).squeeze(1)
    return y_BLD, text_mask(mask, len(y_BLD), y_BLD.shape[1])


def sincos_1d(width: int, positions: NDArray) -> NDArray:
    """float64 [len(positions), width]: sines, then cosines, of position / 10000^(2i / width)."""
    rates = 1.0 / 10000 ** (np.arange(exact_div("position table: width", width, 2), dtype=np.float64) / (width / 2.0))
    angles = positions.reshape(-1).astype(np.float64)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def check_positive(scale: float) -> float:
    """`scale`, which divides positions. Raises ShapeError unless it is above 0."""
    if not scale > 0:
        raise ShapeError(f"position table: scale {scale}; allowed: above 0; correct space_scale or time_scale")
    return scale


def check_probability(class_dropout_prob: float) -> float:
    """`class_dropout_prob`. Raises ConfigError outside [0, 1]."""
    if not 0 <= class_dropout_prob <= 1:
        raise ConfigError(f"model.class_dropout_prob: {class_dropout_prob}; allowed: 0 to 1; correct it")
    return class_dropout_prob


def sincos_temporal(width: int, frames: int, scale: float = 1.0) -> NDArray:
    """float64 [frames, width]; position = frame / scale."""
    return sincos_1d(width, np.arange(frames) / check_positive(scale))


def sincos_spatial(width: int, rows: int, columns: int, scale: float = 1.0, base_size: int | None = None) -> NDArray:
    """float64 [rows * columns, width], row by row: the first half encodes the column, the second half the row.

    Coordinates are index / scale, and with `base_size` also times base_size / (rows or columns). They are float32,
    as in the tables that released weights were trained with.
    """
    exact_div("position table: hidden_size", width, 4)
    scale = check_positive(scale)
    r = np.arange(rows, dtype=np.float32) / scale
    c = np.arange(columns, dtype=np.float32) / scale
    if base_size is not None:
        r, c = r * (base_size / rows), c * (base_size / columns)
    return sincos_2d(width, r, c)


def sincos_2d(width: int, rows: NDArray, columns: NDArray) -> NDArray:
    """float64 [rows * columns, width], row by row, from coordinates: the first half encodes the column, the second the row."""
    column, row = np.meshgrid(columns, rows)
    return np.concatenate([sincos_1d(width // 2, column), sincos_1d(width // 2, row)], axis=1)


def sincos_any_size(
    width: int, rows: int, columns: int, scale: float | Tensor, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[rows * columns, width], row by row, for a grid of any size: the first half encodes the column, the second the row.

    A coordinate is index / scale * base / (rows or columns), with base = sqrt(rows * columns) rounded half to
    even, as Python rounds: small and large grids share one range (STDiT2 and STDiT3; Open-Sora 1.1).
    """
    exact_div("position table: hidden_size", width, 4)
    base = round((rows * columns) ** 0.5)
    rates = 1.0 / 10000 ** (torch.arange(0, width // 2, 2, dtype=torch.float32, device=device) / (width // 2))
    rates = rates.to(dtype)  # a cast model casts its rates too
    row = torch.arange(rows, dtype=torch.float32, device=device) / scale * (base / rows)
    column = torch.arange(columns, dtype=torch.float32, device=device) / scale * (base / columns)

    def features(coordinates: Tensor) -> Tensor:
        angles = coordinates.to(dtype)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    by_column = features(column)[None].expand(rows, -1, -1)
    by_row = features(row)[:, None].expand(-1, columns, -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).to(dtype)
