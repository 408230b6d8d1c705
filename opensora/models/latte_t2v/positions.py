"""Where a token stands: sine tables that are added, and rotations of queries and keys.

Both are stretched for sizes beyond those of the first training stage, so that a longer clip or a larger frame keeps
the range of positions that earlier weights know (position interpolation; Chen et al. 2023, arXiv:2306.15595).
Shapes: h heads, d width of a head, D width, S = rows * columns patches of a frame.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opensora.models.layers.embed import grid_table, sine_table
from opensora.models.layers.rope import rope_frequencies, rotate_halves

Rotate = Callable[[Tensor], Tensor]  # of queries or keys [..., h, N, d]


def frame_scale(video_length: int) -> float:
    """By what positions along time are divided: 17 latent frames count as 1, 56 as 3, 129 as 8."""
    return max((video_length - video_length % 2) // 16, 1)


def patch_scale(latent_rows: int) -> int:
    """By what positions within a frame are divided; 64 latent rows, 512 pixels, count as 1."""
    return max(latent_rows // 64, 1)


@lru_cache(maxsize=8)  # a clip of another size than the model's asks at every step
def patch_table(width: int, rows: int, columns: int, base: int, scale: float) -> NDArray:
    """float64 [S, D]; the grid is stretched to `base` positions per side. Coordinates are float32, as in the release."""
    r = np.arange(rows, dtype=np.float32) / (rows / base) / scale
    c = np.arange(columns, dtype=np.float32) / (columns / base) / scale
    return grid_table(width, r, c)


def frame_table(width: int, frames: int, scale: float) -> NDArray:
    """float64 [frames, D] from float32 coordinates."""
    return sine_table(width, np.arange(frames, dtype=np.float32) / scale)


def rotation(positions_N: Tensor, width: int, scale: float = 1.0) -> Rotate:
    """Rotates all of a head of `width` by whole positions.

    Stretched positions are cut to whole numbers, so that `scale` neighbours share one: so the release was trained.
    """
    angles_Nk = (positions_N / scale).floor()[:, None] * rope_frequencies(width).to(positions_N.device)
    return lambda x: rotate_halves(x, angles_Nk).to(x.dtype)


def grid_rotation(rows_N: Tensor, columns_N: Tensor, width: int, scale: float = 1.0) -> Rotate:
    """Rotates the first half of a head by the row, the second by the column."""
    by_row, by_column = (rotation(positions_N, width // 2, scale) for positions_N in (rows_N, columns_N))

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([by_row(first), by_column(second)], dim=-1)

    return rotate
