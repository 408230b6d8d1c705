"""Optimizer steps of clips of many sizes: every step is made of one bucket, on all ranks.

A row's bucket is a function of (row, seed, epoch). The rows of each bucket, in an order of their own every epoch, fill
steps of micro_batches times the bucket's batch size; what does not fill a step is left out of that epoch. The steps of
all buckets are then shuffled. So step n of a run is a function of (manifest, bucket_config, seed, n): nothing is saved
to resume, and any number of ranks takes the same clips.
"""

import bisect
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.base import ClipSize, SizedDataset
from opensora.datasets.bucket_report import BucketLine, BucketReport, EmptyBucket
from opensora.datasets.buckets import DROPPED, Buckets
from opensora.datasets.sampler import MAX_FALLBACK_ROWS, Request
from opensora.errors import ConfigError, DataError
from opensora.rng import permutation

UNSIZED, TOO_SMALL, TOO_SHORT, CHANCE = (
    "the manifest lacks num_frames, height or width (or fps where start, end or the data set's fps need it)",
    "smaller than 0.8 of every resolution that takes its length",
    "shorter than every length, or of a kind (image, video) that no bucket takes",
    "left out by chance this epoch",
)
_BLOCK = 1 << 20  # rows
_EMPTY_EPOCHS = 100  # in a row, by chance, before it is called an error
_SEEDS = 2**62  # so that a row and an epoch may be added


@dataclass(frozen=True)
class Epoch:
    """One pass over the rows."""

    rows: NDArray[np.integer]  # kept ones, bucket after bucket
    first: NDArray[np.int64]  # where each bucket begins in `rows`; one more at the end
    step_bucket: NDArray[np.int16]  # of each optimizer step
    step_first: NDArray[np.int64]  # where in `rows` each step begins

    def __len__(self) -> int:
        return len(self.step_bucket)


class BucketOrder:
    """An `Order` by buckets.

    image_ratio: share of the optimizer steps that are made of images (buckets of one frame), kept in every epoch by
    leaving out steps of the kind that there is too much of; None = as the data falls.
    Raises ConfigError for a seed or ratio that cannot be used.
    """

    def __init__(
        self,
        dataset: SizedDataset,
        buckets: Buckets,
        *,
        seed: int,
        micro_batches: int,
        image_ratio: float | None = None,
    ) -> None:
        if not 0 <= seed < _SEEDS:
            raise ConfigError(f"config: key 'seed': found {seed}; allowed with bucket_config: 0 to {_SEEDS - 1}")
        if image_ratio is not None and not 0 <= image_ratio <= 1:
            raise ConfigError(f"config: key 'image_ratio': found {image_ratio}; allowed: 0 to 1, or None")
        self.dataset = dataset
        self.buckets = buckets
        self.seed = seed
        self.micro_batches = micro_batches
        self.image_ratio = image_ratio
        self.sizes = dataset.sizes()
        self.batch_sizes = np.array([buckets.batch_size(b) if buckets.takes(b) else 0 for b in buckets.all])
        self._is_image = np.array([bucket.num_frames == 1 for bucket in buckets.all])
        self._ends: list[int] = []  # optimizer steps of the run up to the end of each epoch
        self.epoch = functools.lru_cache(maxsize=2)(self._plan)
        self.choices = functools.lru_cache(maxsize=1)(self._choose)

    def request(self, step: int, micro_batch: int) -> Request:
        # All ranks compute the same plan, and each takes its own micro-batches of the step.
        number, within = self.locate(step)
        epoch = self.epoch(number)
        bucket = int(epoch.step_bucket[within])
        size, first = int(self.batch_sizes[bucket]), int(epoch.first[bucket])
        sample_ids = [micro_batch * size + j for j in range(size)]
        rows = epoch.rows[first : epoch.first[bucket + 1]]
        at = int(epoch.step_first[within]) - first + np.array(sample_ids)
        skips = np.arange(min(len(rows), MAX_FALLBACK_ROWS))
        return Request(step, sample_ids, rows[(at[:, None] + skips) % len(rows)], self.size(bucket))

    def size(self, bucket: int) -> ClipSize:
        """Of the clips of the bucket with this number."""
        return self.buckets.size(self.buckets.all[bucket])

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step in the epoch) of a step of the run."""
        if self.buckets.certain and self.step_count(0):  # then every epoch has this number
            return divmod(step, self.step_count(0))
        while not self._ends or self._ends[-1] <= step:
            self._ends.append((self._ends[-1] if self._ends else 0) + self.step_count(len(self._ends)))
            if len(self._ends) > _EMPTY_EPOCHS and self._ends[-1] == self._ends[-1 - _EMPTY_EPOCHS]:
                raise DataError(f"{self.dataset.where}: {_EMPTY_EPOCHS} epochs in turn have no full step; add rows")
        number = bisect.bisect_right(self._ends, step)
        return number, step - (self._ends[number - 1] if number else 0)

    def _choose(self, epoch: int) -> NDArray[np.int16]:
        """For every row of the data set the number of its bucket, or DROPPED."""
        # In blocks, so that temporary arrays stay small for millions of rows.
        sizes, choices = self.sizes, np.full(len(self.sizes.index), DROPPED, dtype=np.int16)
        for begin in range(0, len(choices), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            known = np.flatnonzero((sizes.num_frames[block] > 0) & (sizes.height[block] > 0) & (sizes.width[block] > 0))
            known += begin
            choices[known] = self.buckets.choose_many(
                sizes.num_frames[known],
                sizes.height[known],
                sizes.width[known],
                frame_interval=self.dataset.frame_interval,
                seeds=self.buckets.row_seed(self.seed, epoch, sizes.index[known]),
            )
        return choices

    def report(self) -> BucketReport:
        """Counts of the rows in the first epoch. Raises DataError when no optimizer step can be filled."""
        epoch, chosen, whole = self.epoch(0), self.choices(0), self.dataset.report()
        counts = np.diff(epoch.first)
        steps = np.bincount(epoch.step_bucket, minlength=len(counts))
        clips = self.micro_batches * self.batch_sizes
        lines = [
            BucketLine(bucket, self.size(n), int(self.batch_sizes[n]), int(counts[n]), int(steps[n]), int(clips[n]))
            for n, bucket in enumerate(self.buckets.all)
            if counts[n]
        ]
        dropped = {reason: whole.count(reason) for reason in whole.dropped}
        for reason, rows in self._drop_reasons(chosen == DROPPED).items():
            dropped[reason] = rows
        filled = {(line.bucket.resolution, line.bucket.num_frames) for line in lines}
        empty = [
            EmptyBucket(name, frames, self._why_empty(name, frames, chosen))
            for name, frames in self.buckets.pairs
            if (name, frames) not in filled
        ]
        report = BucketReport(
            self.dataset.where, whole.rows, dropped, lines, len(epoch), whole, self.image_ratio, empty
        )
        report.require_steps(self.micro_batches)
        return report

    def _why_empty(self, resolution: str, frames: int, chosen: NDArray[np.int16]) -> str:
        """Why no row is in any bucket of this length of a resolution."""
        sizes, interval = self.sizes, self.dataset.frame_interval
        if not self.buckets.takes(next(each for each in self.buckets.all if each[:2] == (resolution, frames))):
            return "its chance is 0"
        large = sizes.height.astype(np.int64) * sizes.width >= self.buckets.fewest_pixels(resolution)
        if frames == 1:
            if not (sizes.num_frames == 1).any():
                return "there are no pictures"
            fitting = large & (sizes.num_frames == 1)
            return _where_to(chosen[fitting], "every picture is too small", "larger buckets take every picture")
        long_enough = sizes.num_frames > frames * interval  # strictly more, as in Open-Sora
        if not long_enough.any():
            return f"no row has more than {frames * interval} frames"
        return _where_to(
            chosen[large & long_enough],
            "every row that is long enough is too small",
            "longer or larger buckets take its rows",
        )

    def _drop_reasons(self, dropped: NDArray[np.bool_]) -> dict[str, int]:
        """Reason -> rows, of the rows that no bucket took."""
        rows = np.flatnonzero(dropped)
        frames, height, width = (
            values[rows] for values in (self.sizes.num_frames, self.sizes.height, self.sizes.width)
        )
        known = (frames != 0) & (height > 0) & (width > 0)
        long_enough, both = self.buckets.fits(frames, height, width, frame_interval=self.dataset.frame_interval)
        masks = {
            UNSIZED: ~known,
            TOO_SHORT: known & ~long_enough,
            TOO_SMALL: known & long_enough & ~both,
            CHANCE: known & both,
        }
        return {reason: int(mask.sum()) for reason, mask in masks.items() if mask.any()}

    def step_count(self, epoch: int) -> int:
        """Optimizer steps of an epoch; those of later epochs are counted without ordering their rows."""
        if epoch in (0, 1):  # these are needed whole
            return len(self.epoch(epoch))
        chosen = self.choices(epoch)
        return int(self._wanted(np.bincount(chosen[chosen != DROPPED], minlength=len(self.buckets))).sum())

    def _plan(self, number: int) -> Epoch:
        # Shuffle the rows, then sort them by bucket: the stable sort keeps the shuffled order within each bucket.
        # Dropped rows have the lowest number, so they come first and are cut off.
        chosen = self.choices(number)
        rows = permutation(len(chosen), self.seed, "order", number)
        if len(rows) < 2**31:
            rows = rows.astype(np.int32)
        shuffled = chosen[rows]
        rows = rows[np.argsort(shuffled, kind="stable")]  # 16 bits: a radix sort
        rows = rows[np.count_nonzero(shuffled == DROPPED) :]
        counts = np.bincount(chosen[chosen != DROPPED], minlength=len(self.buckets))
        first = np.concatenate([[0], np.cumsum(counts)])
        # Cut each bucket's rows into full steps. Rows that fill no step are left out of this epoch only, for the next
        # epoch shuffles them anew.
        clips, full = self.micro_batches * self.batch_sizes, self._full(counts)
        bucket = np.repeat(np.arange(len(full), dtype=np.int16), full)
        nth = np.arange(len(bucket)) - np.repeat(np.cumsum(full) - full, full)  # of the bucket's steps
        begin = first[bucket] + nth * clips[bucket]
        # Shuffle the steps of all buckets, so that no part of an epoch is of one size; drop the surplus of one kind.
        order = permutation(len(bucket), self.seed, "bucket order", number)
        order = order[self._within_ratio(self._is_image[bucket[order]])]
        return Epoch(rows, first, bucket[order], begin[order])

    def _full(self, counts: NDArray[np.integer]) -> NDArray[np.int64]:
        """Steps that the rows of each bucket fill."""
        clips = self.micro_batches * self.batch_sizes
        return np.where(clips > 0, counts // np.maximum(clips, 1), 0)

    def _wanted(self, counts: NDArray[np.integer]) -> NDArray[np.int64]:
        """[images, videos]: steps of an epoch; counts: rows in each bucket."""
        full = self._full(counts)
        images, videos = int(full[self._is_image].sum()), int(full[~self._is_image].sum())
        return np.array(_in_ratio(images, videos, self.image_ratio))

    def _within_ratio(self, is_image: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mask of an epoch's shuffled steps that are made: the first ones of each kind."""
        images = int(is_image.sum())
        keep_images, keep_videos = _in_ratio(images, len(is_image) - images, self.image_ratio)
        return np.where(is_image, np.cumsum(is_image) <= keep_images, np.cumsum(~is_image) <= keep_videos)


def _where_to(choices: NDArray[np.int16], none: str, elsewhere: str) -> str:
    """Why no row is here. choices: of the rows that fit; none, elsewhere: the words for no such row, and for other buckets."""
    if not len(choices):
        return none
    return elsewhere if (choices != DROPPED).any() else "by chance no row came here in this epoch"


def _in_ratio(images: int, videos: int, ratio: float | None) -> tuple[int, int]:
    """The most steps (images, videos) of both kinds that have a share `ratio` of images."""
    if ratio is None:
        return images, videos
    if images * (1 - ratio) >= videos * ratio:  # images to spare
        return (min(images, round(videos * ratio / (1 - ratio))), videos) if ratio < 1 else (images, 0)
    return images, min(videos, round(images * (1 - ratio) / ratio))
