"""The rows of each micro-batch, and the micro-batches of each rank. Pure arithmetic: nothing to save or to restore.

An optimizer step has `micro_batches` micro-batches of `batch_size` samples. Sample number n counts from the start of
the run: n = step * micro_batches * batch_size + sample_id. It belongs to epoch n // rows and takes row
order(epoch)[n % rows], whatever the number of ranks. bucket_plan.py orders clips of many sizes.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.base import ClipSize
from opensora.errors import ConfigError
from opensora.rng import permutation

MAX_FALLBACK_ROWS = 128  # rows that may stand in for a sample, tried in order while they are bad


@dataclass(frozen=True)
class Request:
    """A micro-batch to be made: all that a worker process needs to know of the plan."""

    step: int
    sample_ids: list[int]  # in the global batch
    candidates: NDArray[
        np.integer
    ]  # [samples, rows to try]: the row of each sample, then those that replace it where it is bad
    size: ClipSize | None = None  # of the clips; None = the data set's own


class Order(Protocol):
    """The order in which a run takes its rows."""

    def request(self, step: int, micro_batch: int) -> Request:
        """The micro-batch with this index in an optimizer step, counted over all ranks."""


class EpochOrder:
    """The rows in a fresh order every epoch, keyed by (seed, epoch)."""

    def __init__(
        self, rows: int, seed: int, batch_size: int = 1, micro_batches: int = 1, size: ClipSize | None = None
    ) -> None:
        if batch_size < 1 or micro_batches < 1:
            raise ConfigError(
                f"loader: batch_size={batch_size}, micro_batches={micro_batches}; both must be at least 1"
            )
        self.rows = rows
        self.seed = seed
        self.batch_size = batch_size
        self.micro_batches = micro_batches
        self.size = size
        self._order = functools.lru_cache(maxsize=2)(self._draw)  # a batch may straddle two epochs

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        return permutation(self.rows, self.seed, "order", epoch)

    def row(self, sample: int, skip: int = 0) -> int:
        """The row of a sample number; `skip`: the row so far after it in the epoch's order, which wraps around."""
        return int(self._candidates(sample, skip + 1)[skip])

    def _candidates(self, sample: int, count: int) -> NDArray[np.int64]:
        epoch, position = divmod(sample, self.rows)
        return self._order(epoch)[(position + np.arange(count)) % self.rows]

    def request(self, step: int, micro_batch: int) -> Request:
        sample_ids = [micro_batch * self.batch_size + j for j in range(self.batch_size)]
        first = step * self.micro_batches * self.batch_size
        count = min(self.rows, MAX_FALLBACK_ROWS)
        return Request(
            step,
            sample_ids,
            np.stack([self._candidates(first + sample_id, count) for sample_id in sample_ids]),
            self.size,
        )


@dataclass(frozen=True)
class RankSchedule:
    """The micro-batches that one data rank makes, in order, from `start_step` to the end of the run."""

    micro_batches: int  # per optimizer step, over all data ranks
    data_rank: int
    data_size: int
    start_step: int
    steps: int  # optimizer steps of the whole run

    def __post_init__(self) -> None:
        if self.micro_batches % self.data_size:
            raise ConfigError(
                f"loader: micro_batches={self.micro_batches} on {self.data_size} data ranks; "
                "it must be a multiple of their number; change micro_batches or the number of processes"
            )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(step, index of the micro-batch in it)."""
        for step in range(self.start_step, self.steps):
            for micro_batch in range(self.data_rank, self.micro_batches, self.data_size):
                yield step, micro_batch
