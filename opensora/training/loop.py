"""The training loop. Everything a run does per optimizer step stands in `train`."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from opensora.errors import DataError, TrainingDiverged
from opensora.log import logger
from opensora.parallel.collectives import gather_objects, sum_over_ranks
from opensora.parallel.engine import Engine
from opensora.parallel.world import World
from opensora.random import key_seed
from opensora.schema import TrainRun
from opensora.training.ema import Ema
from opensora.training.metrics import BINS, Metrics, StepRecord, bin_name
from opensora.training.optimizer import Schedule
from opensora.training.rival import Rival
from opensora.training.stop import StopRequest
from opensora.training.task import StepLoss, Task
from opensora.types import Batch


class Keeper(Protocol):
    """Where checkpoints go."""

    def save(self, step: int, bad_rows: list[str]) -> float:
        """Keep the state after `step` optimizer steps; all ranks call it. Returns the seconds it held training up."""

    def finish(self) -> None:
        """Wait until what was saved is on the disk; all ranks call it."""

    def last_good(self) -> str:
        """What a user can go back to, in words."""


@dataclass
class Training:
    """The built parts of one run on this rank."""

    run: TrainRun
    world: World
    task: Task
    engine: Engine
    ema: Ema | None
    schedule: Schedule
    base_lr: float
    batches: Iterator[Batch]  # this rank's micro-batches from `start_step` on
    validation: Callable[[], Iterator[Batch]] | None  # the same batches at every call, shared over the ranks
    metrics: Metrics
    keeper: Keeper
    stop: StopRequest
    start_step: int = 0
    bad_rows: list[str] = field(default_factory=list)  # over all ranks
    rival: Rival | None = None  # the discriminator that the task's model is trained against


def train(t: Training) -> bool:
    """Run the steps that are left; returns False when a signal ended it early (the state is saved either way).

    Raises TrainingDiverged on a loss or gradient that is not finite, DataError above max_bad_rows.
    """
    run, local = t.run, t.run.micro_batches // t.world.data_size
    for step in range(t.start_step, run.steps):
        began, tally = time.monotonic(), Tally()
        lr = t.base_lr * t.schedule(step)
        t.engine.set_lr(lr)
        for micro in range(local):
            batch = next(t.batches)
            torch.manual_seed(key_seed(run.seed, "dropout", step, batch.places[0]))
            loss = t.task.step(t.engine.model, batch)
            t.engine.backward(loss.loss_B.mean() / local, last=micro == local - 1)
            tally.add(batch, loss)
            if t.rival is not None and loss.pair is not None:
                tally.note(t.rival.learn(*loss.pair, share=1 / local, last=micro == local - 1), len(loss.loss_B))
        grad_norm = t.engine.step()
        rival_norm = 0.0 if t.rival is None else t.rival.step(t.schedule(step))
        total = tally.over_ranks(t.world, stop=t.stop.requested)
        done = step + 1
        _stop_if_not_finite(t, total.loss, grad_norm, rival_norm, done)
        _stop_if_too_many_bad_rows(t, total.bad_rows, tally.bad_rows)
        if t.ema is not None:
            t.ema.update()
        if done % run.log_every == 0 or done == run.steps or total.stop:
            t.metrics.log(total.record(done, grad_norm, lr, time.monotonic() - began))
        if t.validation is not None and (done == run.steps or (run.validate_every and done % run.validate_every == 0)):
            t.metrics.log_validation(done, validate(t))
        if done == run.steps or total.stop or (run.save_every and done % run.save_every == 0):
            t.metrics.log_save(done, t.keeper.save(done, t.bad_rows))
        if total.stop:
            t.keeper.finish()
            return done == run.steps
    t.keeper.finish()
    return True


def validate(t: Training) -> dict[str, float]:
    """The task's figures on the validation clips, averaged over ranks that each saw as many."""
    assert t.validation is not None
    t.task.trained.eval()
    values = t.task.validate(t.engine.model, t.validation())
    t.task.trained.train()
    names = sorted(values)
    sums = sum_over_ranks(torch.tensor([values[name] for name in names], dtype=torch.float64))
    return {name: value / t.world.data_size for name, value in zip(names, sums.tolist())}


@dataclass(frozen=True)
class Total:
    """One optimizer step, summed over all ranks."""

    loss: float
    tokens: int
    per_bin: dict[str, float]
    bad_rows: int
    stop: bool
    figures: dict[str, float] = field(default_factory=dict)

    def record(self, step: int, grad_norm: float, lr: float, seconds: float) -> StepRecord:
        return StepRecord(step, self.loss, grad_norm, lr, self.tokens, round(seconds, 4), self.per_bin, self.figures)


class Tally:
    """What one rank saw in one optimizer step."""

    def __init__(self) -> None:
        self.loss_sum: Any = 0.0
        self.samples = 0
        self.tokens = 0
        self.bin_sums = torch.zeros(BINS, dtype=torch.float64)
        self.bin_counts = torch.zeros(BINS, dtype=torch.float64)
        self.bad_rows: list[str] = []
        self.figures: dict[str, Any] = {}  # name -> sum over samples

    def note(self, figures: Mapping[str, Tensor], samples: int) -> None:
        """Means over a micro-batch of `samples`."""
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + samples * value.detach().double().cpu()

    def add(self, batch: Batch, loss: StepLoss) -> None:
        loss_B = loss.loss_B.detach().double().cpu()
        self.loss_sum += loss_B.sum()
        self.samples += len(loss_B)
        self.tokens += loss.tokens
        self.bad_rows += batch.bad_rows
        self.note(loss.figures, len(loss_B))
        if loss.level_B is not None:
            bins = (loss.level_B.detach().double().cpu() * BINS).long().clamp(0, BINS - 1)
            self.bin_sums.index_add_(0, bins, loss_B)
            self.bin_counts.index_add_(0, bins, torch.ones_like(loss_B))

    def over_ranks(self, world: World, stop: bool) -> Total:
        """One small all-reduce; also how the ranks agree to stop."""
        counts = [float(self.loss_sum), self.samples, self.tokens, len(self.bad_rows), stop]
        head = torch.tensor(counts, dtype=torch.float64)
        names = sorted(self.figures)  # the same on every rank: they depend on the step
        figures = torch.tensor([float(self.figures[name]) for name in names], dtype=torch.float64)
        sums = sum_over_ranks(torch.cat([head, self.bin_sums, self.bin_counts, figures]))
        loss, samples, tokens, bad, stops = sums[:5].tolist()
        bin_sums, bin_counts = sums[5 : 5 + BINS].tolist(), sums[5 + BINS : 5 + 2 * BINS].tolist()
        per_bin = {bin_name(i): s / n for i, (s, n) in enumerate(zip(bin_sums, bin_counts)) if n}
        means = {name: value / samples for name, value in zip(names, sums[5 + 2 * BINS :].tolist(), strict=True)}
        return Total(loss / samples, int(tokens), per_bin, int(bad), bool(stops), means)


def _stop_if_not_finite(t: Training, loss: float, grad_norm: float, rival_norm: float, step: int) -> None:
    found = {
        f"the loss is {loss}": loss,
        f"the gradient norm is {grad_norm}": grad_norm,
        f"the discriminator's gradient norm is {rival_norm}": rival_norm,
    }
    what = next((text for text, value in found.items() if not math.isfinite(value)), None)
    if what is None:
        return
    whose = "weights were" if not math.isfinite(grad_norm) or not math.isfinite(loss) else "discriminator was"
    raise TrainingDiverged(
        f"training: {what} between step {step - 1} and step {step}; the {whose} not updated; last good checkpoint: "
        f"{t.keeper.last_good()}; lower optimizer.lr or grad_clip, or look at the clips of that step"
    )


def _stop_if_too_many_bad_rows(t: Training, over_ranks: int, mine: list[str]) -> None:
    if not over_ranks:
        return
    seen = {_row(message) for message in t.bad_rows}
    for message in [message for rank in gather_objects(mine) for message in rank]:
        if _row(message) not in seen:
            seen.add(_row(message))
            t.bad_rows.append(message)
    logger().warning("%d manifest rows could not be used so far (max_bad_rows=%d)", len(t.bad_rows), t.run.max_bad_rows)
    if len(t.bad_rows) > t.run.max_bad_rows:
        raise DataError(
            f"dataset: {len(t.bad_rows)} rows could not be used, the last: {t.bad_rows[-1]}; allowed: max_bad_rows="
            f"{t.run.max_bad_rows}; mend the manifest or raise max_bad_rows; checkpoint: {t.keeper.last_good()}"
        )


def _row(message: str) -> str:
    """The manifest line that a message begins with: ranks that meet different faults of a row count it once."""
    return message.partition(": ")[0]
