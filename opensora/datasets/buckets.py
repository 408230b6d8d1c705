"""Buckets: the size and length at which each clip of a mixed data set is trained.

A bucket is a resolution's name, a number of frames and a ratio's name; the clips of one bucket share one size and can
be batched. The choice for a clip is a function of its frames, height, width and a seed, and gives the very buckets that
Open-Sora 1.1 and 1.2 give. `choose` is for one clip, `choose_many` for millions; bucket_plan.py makes steps of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from opensora.datasets import aspect
from opensora.datasets.vectorized_pcg64 import first_draws
from opensora.errors import ConfigError

# resolution -> frames -> (how often a clip that fits is kept, batch size), or ((keep, try), batch size)
BucketConfig = Mapping[str, Mapping[int, Sequence[Any]]]

SMALLEST = 0.8  # of a resolution's pixels: a smaller clip would be blown up too far
DROPPED = -1
Integers = TypeVar("Integers", int, NDArray[np.int64])


class Bucket(NamedTuple):
    """Names as Open-Sora writes them, for example ("480p", 51, "0.56")."""

    resolution: str
    num_frames: int
    ratio: str


class _Entry(NamedTuple):
    keep: float  # share of the clips that fit and stay; the others go on to smaller resolutions
    attempt: float | None  # share of the clips that fit for which this length is tried at all; None = all, undrawn
    batch_size: int | None


class Buckets:
    """Every bucket of a config, largest resolution and longest clip first.

    config: as in Open-Sora, {"480p": {1: (0.5, 32), 51: ((0.4, 0.3), 4)}}. A chance of 0 needs no batch size.
    version: whose aspect tables. Raises ConfigError for names, chances or sizes that cannot be used.
    """

    def __init__(self, config: BucketConfig, version: aspect.Version = "1.3") -> None:
        self.version = version
        config = {name: _lengths(name, lengths) for name, lengths in config.items()}
        if not any(config.values()):
            raise ConfigError("bucket_config: names no bucket; allowed: resolution -> frames -> (chance, batch size)")
        by_pixels = sorted(config, key=lambda name: aspect.resolution(name, version).num_pixels, reverse=True)
        self.lengths = {name: sorted(config[name], reverse=True) for name in by_pixels}
        pairs = [(name, frames) for name, lengths in self.lengths.items() for frames in lengths]
        self.pairs = {pair: index for index, pair in enumerate(pairs)}  # the index is a part of the seed of each choice
        self._entries = {(name, frames): _entry(name, frames, config[name][frames]) for name, frames in pairs}
        if not any(entry.keep > 0 for entry in self._entries.values()):
            raise ConfigError("bucket_config: every chance is 0, so no clip is taken; allowed: one above 0; raise one")
        self.all = [
            Bucket(name, frames, ratio) for name, frames in pairs for ratio in aspect.resolution(name, version).sizes
        ]

    def __len__(self) -> int:
        """Number of buckets: every ratio of every resolution and length."""
        return len(self.all)

    def row_seed(self, seed: int, epoch: int, row: Integers) -> Integers:
        """The seed for a row, or for each of many, in one epoch: rows are so far apart that no two share a draw in it."""
        return seed + epoch + row * len(self)

    def choose(self, num_frames: int, height: int, width: int, *, frame_interval: int = 1, seed: int) -> Bucket | None:
        """The bucket of a clip, or None when it is dropped.

        Resolutions are tried from the largest that the clip fills to 0.8. An image goes to the images of the first
        resolution that keeps it. A video takes the longest length it has frames for, and stays or tries the next
        resolution. Every (resolution, length) draws from numpy's generator of `seed` + its index.
        """
        for name, lengths in self.lengths.items():
            if height * width < aspect.resolution(name, self.version).num_pixels * SMALLEST:
                continue
            if num_frames == 1:
                length = (
                    1 if 1 in lengths and self._draw(name, 1, seed).random() < self._entries[name, 1].keep else None
                )
            else:
                length = self._length(name, num_frames, frame_interval, seed)
            if length is not None:
                return Bucket(name, length, aspect.closest_ratio(height, width, name, self.version))
        return None

    def choose_many(
        self,
        num_frames: NDArray[np.integer],
        height: NDArray[np.integer],
        width: NDArray[np.integer],
        *,
        frame_interval: int = 1,
        seeds: NDArray[np.integer],
    ) -> NDArray[np.int16]:
        """`choose` for n clips, all arguments [n]: each clip's number in `all`, or DROPPED."""
        choices = np.full(len(num_frames), DROPPED, dtype=np.int16)
        pixels = height.astype(np.int64) * width
        left, first = np.arange(len(num_frames)), 0  # clips without a bucket; number of the resolution's first bucket
        for name, lengths in self.lengths.items():
            table = aspect.resolution(name, self.version)
            fit = left[pixels[left] >= table.num_pixels * SMALLEST]
            length = np.full(len(fit), DROPPED, dtype=np.int16)
            videos = num_frames[fit] != 1
            if 1 in lengths:
                images = np.flatnonzero(~videos)
                length[images[self._kept(name, 1, seeds[fit[images]])]] = lengths.index(1)
            here = np.flatnonzero(videos)
            for index, frames in enumerate(lengths):
                long_enough = num_frames[fit[here]] > frames * frame_interval
                if frames == 1 or not long_enough.any():
                    continue
                tried = here[long_enough]
                untried, kept = self._tried_and_kept(name, frames, seeds[fit[tried]])
                length[tried[kept]] = index
                here = np.concatenate([here[~long_enough], tried[untried]])
            chosen = length != DROPPED
            rows = fit[chosen]
            choices[rows] = first + length[chosen] * len(table.sizes) + _ratios(height[rows], width[rows], table)
            left = left[choices[left] == DROPPED]
            first += len(lengths) * len(table.sizes)
        return choices

    def fits(
        self,
        num_frames: NDArray[np.integer],
        height: NDArray[np.integer],
        width: NDArray[np.integer],
        *,
        frame_interval: int = 1,
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks of the clips long enough for some bucket, and of those that also have the pixels for one of these buckets."""
        pixels = height.astype(np.int64) * width
        long_enough, both = (np.zeros(len(pixels), dtype=np.bool_) for _ in range(2))
        for (name, frames), entry in self._entries.items():
            if entry.keep > 0:
                here = num_frames == 1 if frames == 1 else num_frames > frames * frame_interval
                long_enough |= here
                both |= here & (pixels >= aspect.resolution(name, self.version).num_pixels * SMALLEST)
        return long_enough, both

    def fewest_pixels(self, resolution: str) -> float:
        """The pixels of the smallest clip that a resolution takes."""
        return aspect.resolution(resolution, self.version).num_pixels * SMALLEST

    @property
    def certain(self) -> bool:
        """True when nothing is left to chance, so that every epoch has the same choices."""
        entries = self._entries.values()
        return all(entry.keep in (0, 1) and (entry.attempt is None or entry.attempt >= 1) for entry in entries)

    def takes(self, bucket: Bucket) -> bool:
        """True when clips are ever put in it: its chance is above 0."""
        return self._entries[bucket.resolution, bucket.num_frames].keep > 0

    def _kept(self, name: str, length: int, seeds: NDArray[np.integer], draw: int = 0) -> NDArray[np.bool_]:
        """Mask of the clips that stay, by number `draw` of each one's generator; nothing is drawn where it is certain."""
        keep = self._entries[name, length].keep
        if keep >= 1 or keep <= 0:
            return np.full(len(seeds), keep >= 1)
        return first_draws(seeds + self.pairs[name, length], draw + 1)[:, draw] < keep

    def _tried_and_kept(
        self, name: str, length: int, seeds: NDArray[np.integer]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks of long enough videos: those that go on to the next length untried, and those that stay."""
        attempt = self._entries[name, length].attempt
        if attempt is None or attempt >= 1:
            return np.zeros(len(seeds), dtype=np.bool_), self._kept(name, length, seeds, 0 if attempt is None else 1)
        untried = first_draws(seeds + self.pairs[name, length])[:, 0] > attempt
        kept = np.zeros(len(seeds), dtype=np.bool_)
        kept[~untried] = self._kept(name, length, seeds[~untried], 1)
        return untried, kept

    def size(self, bucket: Bucket) -> tuple[int, int, int]:
        """Frames, height, width of the clips of a bucket."""
        sizes = aspect.resolution(bucket.resolution, self.version).sizes
        return bucket.num_frames, *sizes[bucket.ratio]

    def batch_size(self, bucket: Bucket) -> int:
        """Clips in one micro-batch; ValueError for a bucket that no clip is put in."""
        batch_size = self._entries[bucket.resolution, bucket.num_frames].batch_size
        if batch_size is None:
            raise ValueError(f"{bucket} has no batch size, for its chance is 0")
        return batch_size

    def _length(self, name: str, num_frames: int, frame_interval: int, seed: int) -> int | None:
        """The length a video is trained at in one resolution; None sends it on to the next."""
        for length in self.lengths[name]:
            # Strictly more, as in Open-Sora: its clips of 51 frames need 52.
            if length == 1 or num_frames <= length * frame_interval:
                continue
            entry, rng = self._entries[name, length], self._draw(name, length, seed)
            if entry.attempt is not None and rng.random() > entry.attempt:
                continue
            return length if entry.keep >= 1 or rng.random() < entry.keep else None
        return None

    def _draw(self, name: str, length: int, seed: int) -> np.random.Generator:
        return np.random.default_rng(seed + self.pairs[name, length])


def _ratios(height: NDArray[np.integer], width: NDArray[np.integer], table: aspect.Resolution) -> NDArray[np.intp]:
    """For each clip the number of the nearest ratio in the table, the first of equals."""
    ratios = np.array([float(ratio) for ratio in table.sizes])
    ascending = np.argsort(ratios, kind="stable")
    wanted = height / width
    above = np.clip(np.searchsorted(ratios[ascending], wanted), 1, max(1, len(ratios) - 1))
    low, high = ascending[above - 1], ascending[np.minimum(above, len(ratios) - 1)]
    to_low, to_high = abs(ratios[low] - wanted), abs(ratios[high] - wanted)
    return np.where((to_high < to_low) | ((to_high == to_low) & (high < low)), high, low)


def _lengths(name: str, lengths: Mapping[Any, Sequence[Any]]) -> dict[int, Sequence[Any]]:
    """JSON and the command line write the frames as text."""
    if not isinstance(lengths, Mapping) or not all(str(frames).isdigit() and int(frames) > 0 for frames in lengths):
        raise ConfigError(
            f"bucket_config[{name!r}]: {lengths!r}; allowed: frames -> (chance, batch size); write a dict"
        )
    return {int(frames): entry for frames, entry in lengths.items()}


def _entry(name: str, frames: int, entry: Sequence[Any]) -> _Entry:
    where = f"bucket_config[{name!r}][{frames}]"
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 2:
        raise ConfigError(
            f"{where}: {entry!r}; allowed: (chance, batch size) or ((keep, try), batch size); write a pair"
        )
    chance, batch_size = entry
    chances = list(chance) if isinstance(chance, Sequence) else [chance]
    if len(chances) not in (1, 2) or not all(isinstance(value, int | float) and 0 <= value <= 1 for value in chances):
        raise ConfigError(f"{where}: chance {chance!r}; allowed: 0 to 1, or a pair (keep, try) of such; correct it")
    keep, attempt = chances[0], chances[1] if len(chances) == 2 else None
    if batch_size is None and keep == 0:
        return _Entry(0.0, attempt, None)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"{where}: batch size {batch_size!r}; allowed: 1 or more, or None where the chance is 0")
    return _Entry(keep, attempt, batch_size)
