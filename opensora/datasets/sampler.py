"""Which row a sample takes, and which samples a rank makes. Pure arithmetic: nothing to save, nothing to resume.

An optimizer step has `micro_batches` micro-batches of `batch_size` samples. Sample number n counts from the start of
the run: n = step * micro_batches * batch_size + place. It belongs to epoch n // rows and takes row
order(epoch)[n % rows], whatever the number of ranks.
"""

import functools
from dataclasses import dataclass

import torch

from opensora.errors import ConfigError
from opensora.random import generator


class EpochOrder:
    """The rows in a fresh order every epoch, keyed by (seed, epoch)."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._draw)  # a batch may straddle two epochs

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return EpochOrder, (self.rows, self.seed)  # the cache cannot be sent to a worker, nor need it be

    def _draw(self, epoch: int) -> torch.Tensor:
        return torch.randperm(self.rows, generator=generator(self.seed, "order", epoch))

    def row(self, sample: int, skip: int = 0) -> int:
        """The row of a sample number; `skip` asks for a later one of the same epoch's order, round and round."""
        epoch, position = divmod(sample, self.rows)
        return int(self._order(epoch)[(position + skip) % self.rows])


@dataclass(frozen=True)
class Share:
    """The micro-batches that one data rank makes, in order, from `start_step` to the end of the run."""

    batch_size: int
    micro_batches: int  # per optimizer step, over all data ranks
    data_rank: int
    data_size: int
    start_step: int
    steps: int  # optimizer steps of the whole run

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.micro_batches < 1:
            raise ConfigError(
                f"loader: batch_size={self.batch_size}, micro_batches={self.micro_batches}; both must be at least 1"
            )
        if self.micro_batches % self.data_size:
            raise ConfigError(
                f"loader: micro_batches={self.micro_batches} on {self.data_size} data ranks; "
                "it must be a multiple of their number; change micro_batches or the number of processes"
            )

    @property
    def per_step(self) -> int:
        """Micro-batches this rank makes in one optimizer step."""
        return self.micro_batches // self.data_size

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.per_step

    def samples(self, index: int) -> tuple[int, list[int], list[int]]:
        """(step, places in the global batch, sample numbers) of this rank's micro-batch `index`."""
        ahead, turn = divmod(index, self.per_step)
        step = self.start_step + ahead
        micro_batch = turn * self.data_size + self.data_rank
        places = [micro_batch * self.batch_size + j for j in range(self.batch_size)]
        first = step * self.micro_batches * self.batch_size
        return step, places, [first + place for place in places]
