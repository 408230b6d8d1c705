"""Batches of one data rank, by torch's DataLoader: in order, with or without worker processes."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils import data

from opensora.datasets.protocol import Dataset
from opensora.datasets.sampler import EpochOrder, Share
from opensora.errors import BadClip, DataError
from opensora.log import logger
from opensora.random import Draw
from opensora.types import Batch, Clip


class _MicroBatches(data.Dataset[Batch]):
    """Micro-batch `index` of this rank."""

    def __init__(self, dataset: Dataset, share: Share, seed: int) -> None:
        self.dataset = dataset
        self.share = share
        self.seed = seed
        self.order = EpochOrder(len(dataset), seed)
        self.bad: dict[int, str] = {}  # row -> why; only to tell it once, since a row may be bad in places only

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, index: int) -> Batch:
        step, places, samples = self.share.samples(index)
        known = len(self.bad)
        clips = [self._clip(sample, Draw(self.seed, step, place)) for sample, place in zip(samples, places)]
        return collate(clips, step, places, bad_rows=list(self.bad.values())[known:])

    def _clip(self, sample: int, draw: Draw) -> Clip:
        """The sample's clip; in place of a bad row, the next of the epoch's order, the same on any number of ranks."""
        for skip in range(self.order.rows):
            row = self.order.row(sample, skip)
            try:
                return self.dataset.clip(row, draw)
            except BadClip as error:
                self.bad.setdefault(row, str(error))
        why = next(iter(self.bad.values()))
        raise DataError(f"{self.dataset.where}: all {self.order.rows} rows are bad, one is: {why}; mend the manifest")


def collate(clips: list[Clip], step: int, places: list[int], bad_rows: list[str]) -> Batch:
    return Batch(
        video_BCTHW=torch.stack([clip.video_CTHW for clip in clips]),
        captions=[caption for clip in clips for caption in (clip.caption, *clip.picture_captions)],
        fps_B=torch.tensor([clip.fps for clip in clips], dtype=torch.float32),
        step=step,
        places=places,
        rows=[clip.row for clip in clips],
        bad_rows=bad_rows,
        size=clips[0].size,
        pictures=len(clips[0].picture_captions),
        valid_BTHW=_stack_masks([clip.valid_THW for clip in clips]),
    )


def _stack_masks(masks: list[Tensor | None]) -> Tensor | None:
    """None when no clip has padding; a clip without a mask beside others is all there."""
    some = next((mask for mask in masks if mask is not None), None)
    if some is None:
        return None
    return torch.stack([torch.ones_like(some) if mask is None else mask for mask in masks])


def build_loader(
    dataset: Dataset,
    *,
    seed: int,
    batch_size: int,
    micro_batches: int,
    data_rank: int = 0,
    data_size: int = 1,
    start_step: int = 0,
    steps: int,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """This rank's micro-batches of steps `start_step` to `steps`, `micro_batches / data_size` for each.

    The batches are a function of (dataset, seed, step): starting at any step gives what an uninterrupted run gives.
    A bad row is logged and listed in `Batch.bad_rows` the first time this process meets it.
    ConfigError: the micro-batches cannot be shared evenly. DataError: the data set is empty, or every row is bad.
    """
    share = Share(batch_size, micro_batches, data_rank, data_size, start_step, steps)
    if not len(dataset):
        dataset.report().require_rows()
        raise DataError(f"{dataset.where}: found no rows; training needs at least one; add rows")
    return _batches(_MicroBatches(dataset, share, seed), num_workers)


def _batches(micro_batches: _MicroBatches, num_workers: int) -> Iterator[Batch]:
    told: set[str] = set()  # workers meet the same bad row each for itself; it is told once
    for batch in data.DataLoader(micro_batches, batch_size=None, shuffle=False, num_workers=num_workers):
        fresh = [message for message in batch.bad_rows if message not in told]
        told.update(fresh)
        for message in fresh:
            logger().warning("skipped %s", message)
        batch.bad_rows[:] = fresh
        yield batch
