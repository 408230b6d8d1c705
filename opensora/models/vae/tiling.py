"""Coding a clip piece by piece: windows in time, tiles in space, and how pieces are joined.

Open-Sora-Plan's rules. In time ("temporal rollback") a window of N frames starts on the last frame of the one before,
because every window codes its first frame as a still image; that first frame is dropped from what it gives. In space
tiles overlap and the overlap is blended linearly. The network's norms see one piece at a time, so the result differs
from coding the clip whole.

Everything here is arithmetic on sizes and tensors: a piece can be coded anywhere and by anybody, as long as the pieces
of a window come back in the order of `tiles`. Shapes: [B, C, T, H, W], T H W frames, rows, columns.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from opensora.errors import ConfigError

Code = Callable[[Tensor], Tensor]  # one tile's part of the input -> what the network makes of it
Each = Callable[[Code, Iterable[Tensor]], Iterable[Tensor]]  # codes tiles, in their order; `map` or layers.seam.Pieces


@dataclass(frozen=True)
class Grid:
    """How one direction, encoding or decoding, is cut. `limit` and `stride` count what goes in, the rest what comes out."""

    frames: int  # most frames of a window
    limit: int  # rows and columns of a tile
    stride: int  # from one tile's start to the next
    smallest: int  # rows and columns that give at least one coming out
    keep: int  # rows and columns of a tile that are used; its successor gives those behind
    blend: int  # rows and columns over which neighbours are mixed

    def gives(self, size: int) -> int:
        """Rows or columns that come out of `size`, tiled or not."""
        return size // self.smallest * (self.keep * self.smallest // self.stride)

    def exceeded(self, size: Sequence[int]) -> bool:
        """Whether (frames, rows, columns) are more than one piece holds."""
        return size[0] > self.frames or max(size[1:]) > self.limit


@dataclass(frozen=True)
class Tiling:
    """Sizes of pieces in pixels and frames, and the autoencoder's compression; ConfigError when they do not go together.

    size: rows and columns of a tile. frames: of a window. overlap: share of a tile that its neighbour covers as well.
    compression: pixels per latent in time, rows, columns.
    """

    size: int
    frames: int
    overlap: float
    compression: tuple[int, int, int]

    def __post_init__(self) -> None:
        time, space = self.compression[:2]
        if self.size < space or self.size % space:
            raise ConfigError(
                f"tile_sample_min_size: {self.size} pixels; allowed: a multiple of {space}, the pixels of one latent"
            )
        if self.frames <= time or (self.frames - 1) % time:
            raise ConfigError(
                f"tile_sample_min_size_t: {self.frames} frames; allowed: {time} k + 1 with k of at least 1, for example "
                f"{max(1, self.frames // time) * time + 1}"
            )
        shared = self.latent_size * self.overlap
        if not 0 <= self.overlap < 1 or abs(shared - round(shared)) > 1e-6 or round(shared) == self.latent_size:
            raise ConfigError(
                f"tile_overlap_factor: {self.overlap} of a tile of {self.size} pixels makes tiles start every "
                f"{self.size * (1 - self.overlap):g} pixels; allowed: a multiple of {space} above 0; "
                f"take k / {self.latent_size}, for example {max(1, self.latent_size // 4) / self.latent_size:g}"
            )

    @property
    def latent_size(self) -> int:
        """Rows and columns of a tile in latents."""
        return self.size // self.compression[1]

    @property
    def latent_frames(self) -> int:
        """Frames of a window in latents."""
        return (self.frames - 1) // self.compression[0] + 1

    def encoding(self) -> Grid:
        """Pixels go in, latents come out."""
        space, blend = self.compression[1], self._blend
        keep = self.latent_size - blend
        return Grid(self.frames, self.size, keep * space, space, keep, blend)

    def decoding(self) -> Grid:
        """Latents go in, pixels come out."""
        space, stride = self.compression[1], self.latent_size - self._blend
        return Grid(self.latent_frames, self.latent_size, stride, 1, stride * space, self._blend * space)

    @property
    def _blend(self) -> int:
        return round(self.latent_size * self.overlap)


def windows(frames: int, length: int) -> list[slice]:
    """Windows of at most `length` frames that share one frame with the one before; together they cover `frames`."""
    starts = list(range(0, frames, length - 1))
    if len(starts) == 1:
        return [slice(0, frames)]
    found = [slice(start, after + 1) for start, after in pairwise(starts)]
    if found[-1].stop < frames:
        found.append(slice(starts[-1], frames))
    return found


def spans(size: int, grid: Grid) -> list[slice]:
    """Tiles along rows or columns: one every `stride`, the last ones shorter. A rest that gives no latent is no tile."""
    return [slice(start, min(start + grid.limit, size)) for start in range(0, size - grid.smallest + 1, grid.stride)]


def tiles(size: Sequence[int], grid: Grid) -> list[tuple[slice, slice]]:
    """(rows, columns) of the tiles of (rows, columns), row by row; each can be coded by itself."""
    return [(rows, columns) for rows in spans(size[0], grid) for columns in spans(size[1], grid)]


def code_window(code: Code, x: Tensor, grid: Grid, first: bool, each: Each = map) -> Tensor:
    """One window [B, C, T, H, W], tile by tile. Not the `first`: without the frame its predecessor already gave."""
    dropped = 0 if first else 1
    height, width = x.shape[3:]
    parts = (x[..., rows, columns] for rows, columns in tiles((height, width), grid))
    # map, as the variable of a comprehension would keep each tile until the next one is coded
    return join(map(lambda tile: tile[:, :, dropped:], each(code, parts)), (height, width), grid)


def code_windows(code: Code, x: Tensor, grid: Grid, each: Each = map) -> Iterator[Tensor]:
    """Each window's frames in order, as they are done; joined in time they are the clip. Keeps none of them."""
    for window in windows(x.shape[2], grid.frames):
        yield code_window(code, x[:, :, window], grid, first=window.start == 0, each=each)


def first_frames(windows: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
    """Windows of [B, C, T, H, W] up to `frames` frames in all; those behind are not asked for."""
    for window in windows:
        window = window[:, :, :frames]
        frames -= window.shape[2]
        yield window
        del window  # while the next one is made
        if not frames:
            return


def in_one(windows: Iterable[Tensor], frames: int) -> Tensor:
    """Windows that hold `frames` frames together as one tensor, of which there is never a second copy."""
    out: Tensor | None = None
    done = 0
    for window in windows:
        if window.shape[2] == frames:
            return window
        if out is None:
            out = window.new_empty(*window.shape[:2], frames, *window.shape[3:])
        out[:, :, done : done + window.shape[2]] = window
        done += window.shape[2]
        del window  # while the next one is made
    assert out is not None
    return out


def join(parts: Iterable[Tensor], size: tuple[int, int], grid: Grid) -> Tensor:
    """What the `tiles` of (rows, columns) gave, in their order, as one tensor.

    Each tile is mixed with the one above it and then with the one to its left, as those were after their own mixing.
    Only their borders are kept for it, so that memory is the result, one tile and the borders of a row.
    """
    rows, columns = (len(spans(n, grid)) for n in size)
    source = iter(parts)
    if rows == columns == 1:
        return next(source)
    out: Tensor | None = None
    above: list[Tensor] = []
    for row in range(rows):
        borders: list[Tensor] = []
        left: Tensor | None = None
        for column in range(columns):
            tile = next(source)
            if out is None:
                out = tile.new_empty(*tile.shape[:3], *map(grid.gives, size))
            if row:
                tile = mix(above[column], tile, grid.blend, dim=3)
            if left is not None:
                tile = mix(left, tile, grid.blend, dim=4)
            borders.append(_border(tile, grid.blend, dim=3))
            left = _border(tile, grid.blend, dim=4)
            used = tile[..., : grid.keep, : grid.keep]
            y, x = row * grid.keep, column * grid.keep
            out[..., y : y + used.shape[3], x : x + used.shape[4]] = used
        above = borders
    assert out is not None
    return out


def mix(before: Tensor, tile: Tensor, blend: int, dim: int) -> Tensor:
    """`tile` whose first `blend` rows (dim 3) or columns (dim 4) fade in from the last ones of its neighbour."""
    over = min(blend, before.shape[dim], tile.shape[dim])
    shape = [1] * tile.dim()
    shape[dim] = over
    share = (torch.arange(over, device=tile.device) / max(1, over)).view(shape)
    ending, beginning = before.narrow(dim, before.shape[dim] - over, over), tile.narrow(dim, 0, over)
    mixed = (ending * (1 - share) + beginning * share).to(tile.dtype)
    return torch.cat([mixed, tile.narrow(dim, over, tile.shape[dim] - over)], dim=dim)


def _border(tile: Tensor, blend: int, dim: int) -> Tensor:
    """A copy of the last rows or columns: a view would keep the whole tile."""
    over = min(blend, tile.shape[dim])
    return tile.narrow(dim, tile.shape[dim] - over, over).clone()
