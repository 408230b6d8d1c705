"""Attention in space-time windows and rotations over a grid, of Open-Sora 1.3's STDiT3.

Shapes: B batch, T H W the token grid, S = H*W patches of a frame, D width, h heads, d = D / h, n tokens of a window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from opensora.models.layers.attention import SelfAttention
from opensora.models.layers.rope import RotaryEmbedding, pair_rotation
from opensora.models.shape_checks import ShapeError


def window_size(where: str, kernel_size: Sequence[int]) -> tuple[int, int, int]:
    """(rows, columns, frames) of a window; -1 = the whole axis. ShapeError for anything else."""
    if len(kernel_size) != 3 or any(int(n) != n or (n < 1 and n != -1) for n in kernel_size):
        raise ShapeError(
            f"{where}: {list(kernel_size)}; three whole numbers above 0, or -1 for a whole axis, are needed "
            "(rows, columns, frames)"
        )
    rows, columns, frames = (int(n) for n in kernel_size)
    return rows, columns, frames


def rotation_3d(rope: RotaryEmbedding, grid: Sequence[int], scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Rotates queries and keys [..., T*H*W, d]: a third of each head by frame, row / scale and column / scale.

    `rope` holds the d / 6 frequencies that the thirds share.
    """
    t, h, w = grid
    frames, rows, columns = (torch.arange(size, dtype=torch.float32, device=scale.device) for size in grid)
    by_frame = rope.angles(frames)[:, None, None]
    by_row = rope.angles(rows / scale)[None, :, None]
    by_column = rope.angles(columns / scale)[None, None]
    parts = [part.expand(t, h, w, -1) for part in (by_frame, by_row, by_column)]
    return pair_rotation(torch.cat(parts, dim=-1).flatten(0, 2))


@dataclass(frozen=True)
class Windows:
    """A grid cut into windows, and the rotation within each: attention depends on differences of positions only."""

    grid: tuple[int, int, int]  # T, H, W
    size: tuple[int, int, int]
    rotate: Callable[[Tensor], Tensor]
    mask: Tensor | None = None  # bool [B * windows, 1, 1, n], False = padding; None where there is none

    @classmethod
    def of_grid(
        cls,
        batch: int,
        grid: tuple[int, int, int],
        kernel_size: tuple[int, int, int],
        rope: RotaryEmbedding,
        scale: Tensor,
    ) -> "Windows":
        """kernel_size: rows, columns, frames, -1 = the whole axis."""
        rows, columns, frames = kernel_size
        size = [
            length if window == -1 else min(window, length)
            for length, window in zip(grid, (frames, rows, columns), strict=True)
        ]
        windows = cls(grid, (size[0], size[1], size[2]), rotation_3d(rope, size, scale))
        if not any(windows.padding):
            return windows
        valid_BTS11 = torch.ones(batch, grid[0], grid[1] * grid[2], 1, 1, device=scale.device)
        return replace(windows, mask=windows.cut(valid_BTS11).bool().transpose(2, 3))

    @property
    def padding(self) -> list[int]:
        """Frames, rows, columns of padding that fill the last windows."""
        return [-length % window for length, window in zip(self.grid, self.size, strict=True)]

    def cut(self, x_BTShd: Tensor) -> Tensor:
        """[B, T, S, h, d] -> [B * windows, h, n, d]; positions beyond the grid are zero."""
        mt, mh, mw = self.padding
        x = F.pad(x_BTShd.unflatten(2, self.grid[1:]), (0, 0, 0, 0, 0, mw, 0, mh, 0, mt))
        b, t, h, w, heads, width = x.shape
        kt, kh, kw = self.size
        x = x.reshape(b, t // kt, kt, h // kh, kh, w // kw, kw, heads, width).permute(0, 1, 3, 5, 7, 2, 4, 6, 8)
        return x.reshape(-1, heads, kt * kh * kw, width)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `cut`, [B, T, S, h, d]."""
        kt, kh, kw = self.size
        t, h, w = (length + pad for length, pad in zip(self.grid, self.padding, strict=True))
        x = x.reshape(-1, t // kt, h // kh, w // kw, x.shape[1], kt, kh, kw, x.shape[-1])
        x = x.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(-1, t, h, w, x.shape[4], x.shape[-1])
        return x[:, : self.grid[0], : self.grid[1], : self.grid[2]].flatten(2, 3)


class WindowAttention(SelfAttention):
    """Self-attention of [B, T, S, D] within windows that span both frames and patches."""

    def __init__(self, dim: int, num_heads: int, **options: bool):
        super().__init__(dim, num_heads, crosses_split=True, **options)

    def forward(self, x_BTSD: Tensor, windows: Windows) -> Tensor:  # type: ignore[override]
        # The original pads before the projection, which is the same: nothing attends to padding, nothing reads it.
        qkv = self.a2a_to_heads(self.qkv(x_BTSD).unflatten(-1, (3, self.num_heads, self.head_dim)))
        q, k, v = qkv.unbind(3)
        q, k, v = windows.cut(self.q_norm(q)), windows.cut(self.k_norm(k)), windows.cut(v)
        q, k = windows.rotate(q).to(v.dtype), windows.rotate(k).to(v.dtype)
        out = windows.join(self.kernel(q, k, v, windows.mask))
        return self.proj(self.a2a_to_tokens(out).flatten(3))
