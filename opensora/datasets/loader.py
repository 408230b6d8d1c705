"""Batches of one data rank, by torch's DataLoader: in order, with or without worker processes."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from torch.utils import data

from opensora.datasets.base import ClipSize, Dataset, SizedDataset
from opensora.datasets.sampler import MAX_FALLBACK_ROWS, EpochOrder, Order, RankSchedule, Request
from opensora.errors import BadClip, DataError, OpenSoraError
from opensora.log import logger
from opensora.rng import Draw
from opensora.types import Batch, Clip


class _MicroBatches(data.Dataset[Batch | OpenSoraError]):
    """Makes the batch of a request; the same in any process.

    User errors are returned, not raised: DataLoader would turn them into a worker's traceback.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.bad_rows: dict[int, str] = {}  # row -> first message; it is tried again, for other frames may be sound

    def __getitem__(self, request: Request) -> Batch | OpenSoraError:
        try:
            return self._batch(request)
        except OpenSoraError as error:
            return error

    def _batch(self, request: Request) -> Batch:
        step, sample_ids = request.step, request.sample_ids
        known = len(self.bad_rows)
        clips = [
            self._clip(rows, Draw(self.seed, step, sample_id), request.size)
            for rows, sample_id in zip(request.candidates.tolist(), sample_ids, strict=True)
        ]
        return collate(clips, step, sample_ids, bad_rows=list(self.bad_rows.values())[known:])

    def _clip(self, rows: list[int], draw: Draw, size: ClipSize | None) -> Clip:
        """The clip of the first row that is not bad, the same on any number of ranks."""
        for row in rows:
            try:
                return (
                    self.dataset.clip(row, draw)
                    if size is None
                    else cast(SizedDataset, self.dataset).clip(row, draw, size)
                )
            except BadClip as error:
                self.bad_rows.setdefault(row, str(error))
        why = next(iter(self.bad_rows.values()))
        which = f"all {len(rows)} rows" if len(rows) < MAX_FALLBACK_ROWS else f"{len(rows)} rows in turn"
        raise DataError(f"{self.dataset.where}: {which} are bad, one is: {why}; correct the manifest")


def collate(clips: list[Clip], step: int, sample_ids: list[int], bad_rows: list[str]) -> Batch:
    return Batch(
        video_BCTHW=torch.stack([clip.video_CTHW for clip in clips]),
        captions=[caption for clip in clips for caption in (clip.caption, *clip.image_captions)],
        fps_B=torch.tensor([clip.fps for clip in clips], dtype=torch.float32),
        step=step,
        sample_ids=sample_ids,
        rows=[clip.row for clip in clips],
        bad_rows=bad_rows,
        size=clips[0].size,
        num_images=len(clips[0].image_captions),
        valid_BTHW=_stack_masks([clip.valid_THW for clip in clips]),
    )


def _stack_masks(masks: list[Tensor | None]) -> Tensor | None:
    """None when no clip has padding; a clip without a mask next to others has no padding."""
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
    order: Order | None = None,
) -> Iterator[Batch]:
    """This rank's micro-batches of steps `start_step` to `steps`, `micro_batches / data_size` for each.

    order: their rows; None = every row once an epoch, in micro-batches of `batch_size`.
    The batches are a function of (dataset, seed, step): starting at any step gives what an uninterrupted run gives.
    A bad row is logged and listed in `Batch.bad_rows` the first time this process meets it.
    ConfigError: the micro-batches cannot be shared evenly. DataError: the data set is empty, or every row is bad.
    """
    schedule = RankSchedule(micro_batches, data_rank, data_size, start_step, steps)
    chosen = order or EpochOrder(len(dataset), seed, batch_size, micro_batches)
    if not len(dataset):
        dataset.report().require_rows()
        raise DataError(f"{dataset.where}: found no rows; training needs at least one; add rows")
    # Requests are made in this process, so that workers need no plan of the whole run.
    requests = (chosen.request(step, micro_batch) for step, micro_batch in schedule)
    return _batches(
        data.DataLoader(
            _MicroBatches(dataset, seed),
            batch_size=None,
            sampler=requests,
            num_workers=num_workers,
            worker_init_fn=_ignore_group_sigterm,
        )
    )


def _ignore_group_sigterm(worker: int) -> None:
    """Launchers send SIGTERM to all processes of a rank, which needs its workers to finish the step before it leaves."""
    if sys.platform != "linux":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _batches(batches: "data.DataLoader[Batch | OpenSoraError]") -> Iterator[Batch]:
    logged: set[str] = set()  # each worker reports a bad row once; the log names it once
    for batch in batches:
        if isinstance(batch, OpenSoraError):
            raise batch
        fresh = [message for message in batch.bad_rows if message not in logged]
        logged.update(fresh)
        for message in fresh:
            logger().warning("skipped %s", message)
        batch.bad_rows[:] = fresh
        yield batch
