"""The training loop. Everything a run does per optimizer step stands in `train` and `train_step`."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from opensora.errors import DataError, TrainingDiverged
from opensora.log import logger
from opensora.parallel.collectives import gather_objects, sum_over_ranks
from opensora.parallel.engine import Engine
from opensora.parallel.world import World
from opensora.rng import key_seed
from opensora.schema import TrainRun
from opensora.training.anomalies import Guard, Outcome
from opensora.training.discriminator import Rival
from opensora.training.ema import Ema
from opensora.training.isolation import evaluation_mode
from opensora.training.metrics import BINS, Metrics, StepRecord, bin_name, level_bins
from opensora.training.optimizer import Schedule
from opensora.training.signals import StopRequest
from opensora.training.task import StepLoss, Task
from opensora.types import Batch


class Checkpointer(Protocol):
    """Where checkpoints go."""

    def save(self, step: int, bad_rows: list[str]) -> float:
        """Keep the state after `step` optimizer steps; all ranks call it. Returns the seconds it held training up."""

    def finish(self) -> None:
        """Wait until what was saved is on the disk; all ranks call it."""

    def describe_latest(self) -> str:
        """What a user can go back to, in words."""


@dataclass
class TrainState:
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
    checkpointer: Checkpointer
    stop: StopRequest
    start_step: int = 0
    bad_rows: list[str] = field(default_factory=list)  # over all ranks
    rival: Rival | None = None  # the discriminator that the task's model is trained against
    traced: Callable[[range], Iterator[int]] = iter  # the steps as given; some may be recorded on the way
    guard: Guard = field(default_factory=Guard)
    preview: Callable[[int], None] | None = None  # makes sample videos after so many steps; all ranks call it


def train(t: TrainState) -> bool:
    """Run the steps that are left; returns False when a signal ended it early (the state is saved either way).

    Raises TrainingDiverged where the guard ends the run, DataError above max_bad_rows.
    """
    run = t.run
    for step in t.traced(range(t.start_step, run.steps)):
        began, done = time.monotonic(), step + 1
        taken = train_step(t, step)
        total = taken.total
        if taken.outcome.trouble is not None:
            _report_trouble(t, taken, done)
        _stop_if_too_many_bad_rows(t, total.bad_rows, taken.tally.bad_rows)
        if taken.outcome.trouble is None and (done % run.log_every == 0 or done == run.steps or total.stop):
            t.metrics.log(taken.record(done, time.monotonic() - began, t.guard.skipped))
        if total.stop:  # nothing else first: who asked may not wait long
            _save(t, done)
            t.checkpointer.finish()
            return done == run.steps
        if t.validation is not None and _due(run.validate_every, done, run.steps):
            t.metrics.log_validation(done, validate(t))
        if t.preview is not None and _due(run.preview_every, done, run.steps):
            t.preview(done)
        if _due(run.save_every, done, run.steps):
            _save(t, done)
    t.checkpointer.finish()
    return True


def train_step(t: TrainState, step: int) -> "Taken":
    """All micro-batches of one step, then one update of weights and average, or of nothing where the guard refuses."""
    tally, local = Tally(), t.run.micro_batches // t.world.data_size
    lr = t.base_lr * t.schedule(step)
    t.engine.set_lr(lr)
    for micro in range(local):
        batch = next(t.batches)
        torch.manual_seed(key_seed(t.run.seed, "dropout", step, batch.sample_ids[0]))
        loss = t.task.step(t.engine.model, batch)
        t.engine.backward(loss.loss_B.mean() / local, last=micro == local - 1)
        tally.add(batch, loss)
        if t.rival is not None and loss.pair is not None:
            tally.note(t.rival.learn(*loss.pair, share=1 / local, last=micro == local - 1), len(loss.loss_B))
    total = tally.over_ranks(t.world, stop=t.stop.requested)
    outcome = t.guard.step(t.engine, t.rival, total.loss, t.schedule(step), step)
    if t.ema is not None and outcome.trouble is None:
        t.ema.update()
    return Taken(total, tally, outcome, lr)


def validate(t: TrainState) -> dict[str, float]:
    """The task's figures on the validation clips, means over the samples of all ranks; training is left as it is."""
    assert t.validation is not None
    with evaluation_mode(t.task.trained, t.world.device):
        values = t.task.validate(t.engine.model, t.validation())
    names = sorted(values)
    sums = sum_over_ranks(torch.tensor([values[name] for name in names], dtype=torch.float64).view(-1, 2))
    return {name: total / count for name, (total, count) in zip(names, sums.tolist(), strict=True) if count}


def _save(t: TrainState, step: int) -> None:
    t.metrics.log_save(step, t.checkpointer.save(step, t.bad_rows))


def _due(every: int, done: int, steps: int) -> bool:
    """Every so many steps (0 = never) and after the last."""
    return done == steps or (every > 0 and done % every == 0)


@dataclass(frozen=True)
class Total:
    """One optimizer step, summed over all ranks."""

    loss: float
    tokens: int
    per_bin: dict[str, float]
    bad_rows: int
    stop: bool
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """One optimizer step that was tried."""

    total: Total
    tally: "Tally"
    outcome: Outcome
    lr: float

    def record(self, step: int, seconds: float, skipped: int) -> StepRecord:
        total = self.total
        return StepRecord(
            step=step,
            loss=total.loss,
            grad_norm=self.outcome.grad_norm,
            lr=self.lr,
            tokens=total.tokens,
            seconds=round(seconds, 4),
            loss_per_bin=total.per_bin,
            figures=total.figures,
            skipped=skipped,
        )


class Tally:
    """What one rank saw in one optimizer step."""

    def __init__(self) -> None:
        self.loss_sum: Any = 0.0
        self.samples = 0
        self.tokens = 0
        self.bin_sums = torch.zeros(BINS, dtype=torch.float64)
        self.bin_counts = torch.zeros(BINS, dtype=torch.float64)
        self.bad_rows: list[str] = []
        self.seen: list[tuple[Batch, Tensor, Tensor | None]] = []  # batch, loss and noise level of each sample
        self.figures: dict[str, Any] = {}  # name -> sum over samples

    def note(self, figures: Mapping[str, Tensor], samples: int) -> None:
        """Means over a micro-batch of `samples`."""
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + samples * value.detach().cpu().double()

    def add(self, batch: Batch, loss: StepLoss) -> None:
        loss_B = loss.loss_B.detach().cpu().double()
        level_B = None if loss.level_B is None else loss.level_B.detach().cpu().double()
        self.seen.append((replace(batch, video_BCTHW=torch.empty(0)), loss_B, level_B))  # without the frames
        self.loss_sum += loss_B.sum()
        self.samples += len(loss_B)
        self.tokens += loss.tokens
        self.bad_rows += batch.bad_rows
        self.note(loss.figures, len(loss_B))
        if level_B is not None:
            bins = level_bins(level_B)
            self.bin_sums.index_add_(0, bins, loss_B)
            self.bin_counts.index_add_(0, bins, torch.ones_like(loss_B))

    def samples_seen(self) -> list[dict[str, Any]]:
        """Place, manifest row, loss and noise level of each of this rank's samples."""
        return [
            {
                "place": sample_id,
                "row": batch.rows[i],
                "loss": loss_B[i].item(),
                "level": None if level_B is None else level_B[i].item(),
            }
            for batch, loss_B, level_B in self.seen
            for i, sample_id in enumerate(batch.sample_ids)
        ]

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
        tokens /= world.sequence_size  # the ranks of a sequence group count the same samples; the rest are means
        return Total(loss / samples, int(tokens), per_bin, int(bad), bool(stops), means)


def _report_trouble(t: TrainState, taken: Taken, step: int) -> None:
    """Tell which step was not made and of what samples it was; raises TrainingDiverged when the run is to end."""
    outcome, total = taken.outcome, taken.total
    samples = {each["place"]: each for rank in gather_objects(taken.tally.samples_seen()) for each in rank}
    told = {"what": outcome.trouble, "did": "stop" if outcome.stop else "skip", "skipped": t.guard.skipped}
    numbers = {
        "loss": total.loss,
        "grad_norm": outcome.grad_norm,
        "samples": [samples[sample_id] for sample_id in sorted(samples)],
    }
    t.metrics.log_trouble(step, {**told, **numbers})
    if not outcome.stop:
        return
    row = f" ({t.guard.in_a_row} in a row)" if t.guard.in_a_row > 1 else ""
    raise TrainingDiverged(
        f"training: {outcome.trouble} between step {step - 1} and step {step}{row}; the weights were not updated; last good "
        f"checkpoint: {t.checkpointer.describe_latest()}; lower optimizer.lr or grad_clip, or look at the clips of that "
        f"step with `opensora replay {t.run.run_dir} step={step}`"
    )


def _stop_if_too_many_bad_rows(t: TrainState, over_ranks: int, mine: list[str]) -> None:
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
            f"{t.run.max_bad_rows}; mend the manifest or raise max_bad_rows; checkpoint: {t.checkpointer.describe_latest()}"
        )


def _row(message: str) -> str:
    """The manifest line that a message begins with: ranks that meet different faults of a row count it once."""
    return message.partition(": ")[0]
