"""Embeddings with the key names of diffusers: patches, timestep, caption; and the MLP.

Shapes: B batch, C channels, T frames, S = h * w patches of a frame, L text tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.latte_t2v.positions import sincos_patches
from opensora.models.layers.clip_cache import ClipCache, keep
from opensora.models.layers.embed import normal_init_, timestep_features
from opensora.models.shape_checks import exact_div

NULL_TOKENS = 120  # rows of the null caption in every release, however long its captions are


class PatchEmbed(nn.Module):
    """Patch embedding of every frame plus its position table.

    grid: rows and columns of the stored table. base: side of the square that every grid is stretched to; scale divides
    positions.
    """

    def __init__(self, patch_size: int, in_channels: int, dim: int, grid: tuple[int, int], base: int, scale: float):
        super().__init__()
        self.patch_size, self.grid, self.base, self.scale = patch_size, grid, base, scale
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.register_buffer("pos_embed", self._table(*grid)[None], persistent=False)
        self.pos_embed: Tensor

    def grid_of(self, x_BCTHW: Tensor) -> tuple[int, int]:
        """Rows and columns of patches. Raises ShapeError when patches do not divide the latents."""
        rows, columns = (exact_div("LatteT2V: latents over patch_size", n, self.patch_size) for n in x_BCTHW.shape[3:])
        return rows, columns

    def forward(self, x_BCTHW: Tensor, cache: ClipCache | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, T, S, D]; cache: keeps the positions of a grid other than the stored one."""
        grid = self.grid_of(x_BCTHW)
        patches = self.proj(x_BCTHW.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        table = self.pos_embed
        if grid != self.grid:
            table = keep(cache, "positions", lambda: self._table(*grid).to(patches))
        return (patches + table).unflatten(0, (len(x_BCTHW), -1))

    def _table(self, rows: int, columns: int) -> Tensor:
        table = sincos_patches(self.proj.out_channels, rows, columns, self.base, self.scale)
        return torch.as_tensor(table).float()


class _TimestepLayers(nn.Module):
    def __init__(self, dim: int, frequency_width: int):
        super().__init__()
        self.linear_1 = nn.Linear(frequency_width, dim)
        self.linear_2 = nn.Linear(dim, dim)


class _TimestepEmbedding(nn.Module):
    """A level of nesting that the key names need."""

    def __init__(self, dim: int, frequency_width: int):
        super().__init__()
        self.timestep_embedder = _TimestepLayers(dim, frequency_width)


class TimestepModulation(nn.Module):
    """Timestep -> its embedding e, and the six modulation vectors that all blocks share."""

    def __init__(self, dim: int, frequency_width: int = 256):
        super().__init__()
        self.emb = _TimestepEmbedding(dim, frequency_width)
        self.linear = nn.Linear(dim, 6 * dim)

    def init_weights(self) -> None:
        """Weights N(0, 0.02), so that conditioning starts weak."""
        layers = self.emb.timestep_embedder
        for linear in (layers.linear_1, layers.linear_2, self.linear):
            normal_init_(linear)

    def forward(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """[B] -> e [B, D], vectors [B, 6, D]."""
        layers = self.emb.timestep_embedder
        features = timestep_features(t_B, layers.linear_1.in_features).to(self.linear.weight.dtype)
        e_BD = layers.linear_2(F.silu(layers.linear_1(features)))
        return e_BD, self.linear(F.silu(e_BD)).unflatten(1, (6, -1))


class CaptionProjection(nn.Module):
    """Projects text states to the model's width.

    `y_embedding`, the null caption of the image model that the weights come from, is in every release but unused:
    the encoded empty prompt serves as null caption.
    """

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, dim)
        self.linear_2 = nn.Linear(dim, dim)
        self.register_buffer("y_embedding", torch.randn(NULL_TOKENS, in_channels) / in_channels**0.5)

    def init_weights(self) -> None:
        normal_init_(self.linear_1)
        normal_init_(self.linear_2)

    def forward(self, y: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(y), approximate="tanh"))


class _GeluProjection(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two-layer MLP with an inner width of 4 D."""

    def __init__(self, dim: int):
        super().__init__()
        # nn.Identity stands for a dropout that no release uses.
        self.net = nn.Sequential(_GeluProjection(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
