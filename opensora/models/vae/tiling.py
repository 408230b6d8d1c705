"""Encode or decode ("code") a clip in windows of time and tiles of space, and join the results.

Open-Sora-Plan's rules. In time ("temporal rollback") a window of N frames starts on the last frame of the one before,
because every window codes its first frame as a still image; that first frame is dropped from its output. In space tiles
overlap and the overlap is blended linearly. The network's norms see one tile at a time, so the result differs from
coding the whole clip.

Everything here is arithmetic on sizes and tensors: tiles may be coded on any rank, as long as the tiles of a window come
back in the order of `tiles`. Shapes: [B, C, T, H, W], T H W frames, rows, columns.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from opensora.errors import ConfigError

Code = Callable[[Tensor], Tensor]  # a tile of the input -> a tile of the output
MapTiles = Callable[[Code, Iterable[Tensor]], Iterable[Tensor]]  # codes tiles in order; `map` or layers.seam.TileMap


@dataclass(frozen=True)
class Grid:
    """Window and tile sizes of encoding or of decoding."""

    frames: int  # input frames per window, at most
    limit: int  # input rows and columns of a tile
    stride: int  # input rows or columns from one tile's start to the next
    smallest: int  # input rows or columns per output row or column, at least 1
    keep: int  # output rows and columns of a tile that are used; the rest come from the next tile
    blend: int  # output rows and columns over which neighbors are blended

    def output_size(self, size: int) -> int:
        """Output rows or columns for `size` input ones, tiled or not."""
        return size // self.smallest * (self.keep * self.smallest // self.stride)

    def is_exceeded_by(self, size: Sequence[int]) -> bool:
        """True if (frames, rows, columns) do not fit one window and tile."""
        return size[0] > self.frames or max(size[1:]) > self.limit


@dataclass(frozen=True)
class Tiling:
    """Sizes of tiles in pixels and windows in frames, with the autoencoder's compression. Raises ConfigError.

    size: rows and columns of a tile. frames: of a window. overlap: share of a tile that its neighbor covers as well.
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
    slices = [slice(start, after + 1) for start, after in pairwise(starts)]
    if slices[-1].stop < frames:
        slices.append(slice(starts[-1], frames))
    return slices


def tile_slices(size: int, grid: Grid) -> list[slice]:
    """Tiles along rows or columns: one every `stride`, the last ones shorter; a rest below `smallest` is no tile."""
    return [slice(start, min(start + grid.limit, size)) for start in range(0, size - grid.smallest + 1, grid.stride)]


def tiles(size: Sequence[int], grid: Grid) -> list[tuple[slice, slice]]:
    """(rows, columns) of the tiles of (rows, columns), row by row; each can be coded alone."""
    return [(rows, columns) for rows in tile_slices(size[0], grid) for columns in tile_slices(size[1], grid)]


def code_window(code: Code, x: Tensor, grid: Grid, first: bool, map_tiles: MapTiles = map) -> Tensor:
    """One window [B, C, T, H, W], tile by tile; without the frame that overlaps the previous window, unless it is the `first`."""
    dropped = 0 if first else 1
    height, width = x.shape[3:]
    parts = (x[..., rows, columns] for rows, columns in tiles((height, width), grid))
    # map: the variable of a comprehension would keep each tile until the next one is coded
    return join(map(lambda tile: tile[:, :, dropped:], map_tiles(code, parts)), (height, width), grid)


def code_windows(code: Code, x: Tensor, grid: Grid, map_tiles: MapTiles = map) -> Iterator[Tensor]:
    """Yield the windows' outputs in order; concatenated in time they are the clip. Keeps none of them."""
    for window in windows(x.shape[2], grid.frames):
        yield code_window(code, x[:, :, window], grid, first=window.start == 0, map_tiles=map_tiles)


def first_frames(windows: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
    """Windows [B, C, T, H, W] up to `frames` frames in all; later windows are not computed."""
    for window in windows:
        window = window[:, :, :frames]
        frames -= window.shape[2]
        yield window
        del window  # while the next one is made
        if not frames:
            return


def concat_windows(windows: Iterable[Tensor], frames: int) -> Tensor:
    """Concatenate windows of `frames` frames in all, without a second copy in memory."""
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
    """Join the coded `tiles` of (rows, columns), in their order, to one tensor.

    Each tile is blended with the one above it and then with the one to its left, after those were blended themselves.
    Only their borders are kept for it, so memory holds the result, one tile and the borders of a row.
    """
    rows, columns = (len(tile_slices(n, grid)) for n in size)
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
                out = tile.new_empty(*tile.shape[:3], *map(grid.output_size, size))
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
    """`tile`, whose first `blend` rows (dim 3) or columns (dim 4) fade in from the last ones of its neighbor."""
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
