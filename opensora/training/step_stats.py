"""The numbers of one optimizer step: this rank's micro-batches, their totals over all ranks, and the logged record.

Losses, noise levels and metrics stay on the device until the step ends. Then they cross to the host together and are
added up in float64 there, because some devices have no float64.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from opensora.parallel.collectives import sum_over_ranks
from opensora.parallel.world import World
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch

BINS = 10  # equal parts of the noise scale, 0 = nearly clean


@dataclass(frozen=True)
class StepTotals:
    """One optimizer step, over all ranks."""

    loss: float  # mean over the global batch
    tokens: int  # latent tokens in the global batch
    loss_per_bin: dict[str, float]  # mean loss of the samples whose noise level fell in each tenth
    metrics: dict[str, float]  # parts of the loss and the like, means over the global batch
    bad_rows: int  # manifest rows that could not be used
    stop: bool  # a signal to stop reached at least one rank


class StepStats:
    """Gathers one rank's part of one optimizer step."""

    def __init__(self) -> None:
        self.tokens = 0
        self.bad_rows: list[str] = []
        self._start = time.monotonic()
        self._batches: list[Batch] = []
        self._loss_B: list[Tensor] = []
        self._noise_level_B: list[Tensor | None] = []
        self._metrics: list[tuple[str, Tensor, int]] = []  # name, mean over a micro-batch, its samples

    def add(self, batch: Batch, loss: MicroBatchLoss) -> None:
        """Add one micro-batch. Nothing is copied to the host yet."""
        self.tokens += loss.tokens
        self.bad_rows += batch.bad_rows
        self._batches.append(replace(batch, video_BCTHW=torch.empty(0)))  # without the frames
        self._loss_B.append(loss.loss_B.detach())
        self._noise_level_B.append(None if loss.noise_level_B is None else loss.noise_level_B.detach())
        self.add_metrics(loss.metrics, len(loss.loss_B))

    def add_metrics(self, metrics: Mapping[str, Tensor], samples: int) -> None:
        """Add means over a micro-batch of `samples`."""
        self._metrics += [(name, value.detach(), samples) for name, value in metrics.items()]

    def all_reduce(self, world: World, stop: bool) -> StepTotals:
        """Sum over all ranks, by one small all-reduce. It is also how the ranks agree to stop."""
        self._move_to_host()
        bin_sums, bin_counts = torch.zeros(2, BINS, dtype=torch.float64)
        metrics: dict[str, float] = defaultdict(float)
        loss_sum = 0.0
        for loss_B, level_B in zip(self._loss_B, self._noise_level_B, strict=True):
            loss_sum += loss_B.sum().item()
            if level_B is not None:
                bins = noise_bins(level_B)
                bin_sums.index_add_(0, bins, loss_B)
                bin_counts.index_add_(0, bins, torch.ones_like(loss_B))
        for name, value, samples in self._metrics:
            metrics[name] += samples * value.item()
        names = sorted(metrics)  # the same on every rank: they depend on the step
        counts = [loss_sum, sum(map(len, self._loss_B)), self.tokens, len(self.bad_rows), stop]
        numbers = torch.tensor([*counts, *(metrics[name] for name in names)], dtype=torch.float64)
        sums = sum_over_ranks(torch.cat([numbers, bin_sums, bin_counts]))
        numbers, bin_sums, bin_counts = sums.split([len(numbers), BINS, BINS])
        loss, samples_sum, tokens, bad_rows, stops, *metric_sums = numbers.tolist()
        in_bins = enumerate(zip(bin_sums.tolist(), bin_counts.tolist(), strict=True))
        return StepTotals(
            loss=loss / samples_sum,
            # the ranks of a sequence group count the same samples; all else is a mean
            tokens=int(tokens / world.sequence_size),
            loss_per_bin={bin_name(index): total / count for index, (total, count) in in_bins if count},
            metrics={name: value / samples_sum for name, value in zip(names, metric_sums, strict=True)},
            bad_rows=int(bad_rows),
            stop=bool(stops),
        )

    def per_sample(self) -> list[dict[str, Any]]:
        """Place (the sample id), manifest row, loss and noise level of each of this rank's samples; call after `all_reduce`."""
        return [
            {
                "place": sample_id,
                "row": batch.rows[i],
                "loss": loss_B[i].item(),
                "level": None if level_B is None else level_B[i].item(),
            }
            for batch, loss_B, level_B in zip(self._batches, self._loss_B, self._noise_level_B, strict=True)
            for i, sample_id in enumerate(batch.sample_ids)
        ]

    def seconds(self) -> float:
        """Wall time since the step began."""
        return time.monotonic() - self._start

    def _move_to_host(self) -> None:
        levels = [each for each in self._noise_level_B if each is not None]
        host = iter(to_host([*self._loss_B, *levels, *(value for _, value, _ in self._metrics)]))
        self._loss_B = [next(host) for _ in self._loss_B]
        self._noise_level_B = [None if each is None else next(host) for each in self._noise_level_B]
        self._metrics = [(name, next(host), samples) for name, _, samples in self._metrics]


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step as it was made or discarded; all but `stats` is the same on every rank."""

    step: int  # optimizer steps done
    totals: StepTotals
    grad_norm: float  # of the model, before clipping
    lr: float
    seconds: float  # wall time of this step
    stats: StepStats  # this rank's part
    anomaly: str | None = None  # why nothing was updated, in words
    skipped: int = 0  # optimizer steps of the run so far that were not made, see anomalies.py

    def json(self) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        totals = self.totals
        return {
            "step": self.step,
            "loss": totals.loss,
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "tokens": totals.tokens,
            "seconds": self.seconds,
            "loss_per_bin": totals.loss_per_bin,
            **({"figures": totals.metrics} if totals.metrics else {}),
            "skipped": self.skipped,
        }


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in float64 on the CPU, in their shapes; one copy for each device they are on."""
    indices: dict[torch.device, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        indices[tensor.device].append(index)
    host = list(tensors)
    for group in indices.values():
        flat = torch.cat([tensors[index].flatten() for index in group]).cpu().double()
        parts = flat.split([tensors[index].numel() for index in group])
        for index, part in zip(group, parts, strict=True):
            host[index] = part.view(tensors[index].shape)
    return host


def bin_name(index: int) -> str:
    """The tenth of the noise scale with this index, as in "0.3-0.4"."""
    return f"{index / BINS:.1f}-{(index + 1) / BINS:.1f}"


def noise_bins(noise_level_B: Tensor) -> Tensor:
    """The index of the tenth in which each noise level in [0, 1] lies, int64 [B]."""
    return (noise_level_B * BINS).long().clamp(0, BINS - 1)
