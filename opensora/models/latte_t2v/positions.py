"""Position embeddings: sine-cosine tables that are added, and rotations of queries and keys.

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

from opensora.models.layers.embed import sincos_1d, sincos_2d
from opensora.models.layers.rope import half_rotation, rope_frequencies

Rotate = Callable[[Tensor], Tensor]  # of queries or keys [..., h, N, d]


def frame_scale(video_length: int) -> float:
    """The divisor of frame numbers: 1 for 17 latent frames, 3 for 56, 8 for 129."""
    return max((video_length - video_length % 2) // 16, 1)


def patch_scale(latent_rows: int) -> int:
    """The divisor of rows and columns: 1 for 64 latent rows, that is 512 pixels."""
    return max(latent_rows // 64, 1)


@lru_cache(maxsize=8)  # clips of another size than the model's need a table at every step
def sincos_patches(width: int, rows: int, columns: int, base: int, scale: float) -> NDArray:
    """float64 [S, D]; the grid is stretched to `base` positions per side. Coordinates are float32, as in the release."""
    r = np.arange(rows, dtype=np.float32) / (rows / base) / scale
    c = np.arange(columns, dtype=np.float32) / (columns / base) / scale
    return sincos_2d(width, r, c)


def sincos_frames(width: int, frames: int, scale: float) -> NDArray:
    """float64 [frames, D] from float32 coordinates."""
    return sincos_1d(width, np.arange(frames, dtype=np.float32) / scale)


def rotation_1d(positions_N: Tensor, width: int, scale: float = 1.0) -> Rotate:
    """Rotates a head of `width` by whole positions.

    Divided positions are rounded down, so that `scale` neighbors share one: the release was trained so.
    """
    angles_Nk = (positions_N / scale).floor()[:, None] * rope_frequencies(width).to(positions_N.device)
    rotate = half_rotation(angles_Nk)
    return lambda x: rotate(x).to(x.dtype)


def rotation_2d(rows_N: Tensor, columns_N: Tensor, width: int, scale: float = 1.0) -> Rotate:
    """Rotates the first half of a head of `width` by the row, the second by the column."""
    by_row, by_column = (rotation_1d(positions_N, width // 2, scale) for positions_N in (rows_N, columns_N))

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([by_row(first), by_column(second)], dim=-1)

    return rotate
