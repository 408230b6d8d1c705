"""The training loop. Everything a run does per optimizer step stands in `train` and `train_step`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch

from opensora.errors import DataError, TrainingDiverged
from opensora.log import logger
from opensora.parallel.collectives import gather_objects, sum_over_ranks
from opensora.parallel.engine import Engine
from opensora.parallel.world import World
from opensora.rng import key_seed
from opensora.schema import TrainRun
from opensora.training.anomalies import MODEL, AnomalyDetector
from opensora.training.discriminator_trainer import DiscriminatorTrainer
from opensora.training.ema import Ema
from opensora.training.isolation import evaluation_mode
from opensora.training.metrics import Metrics
from opensora.training.optimizer import Schedule
from opensora.training.signals import StopRequest
from opensora.training.step_stats import StepRecord, StepStats
from opensora.training.task import Task
from opensora.types import Batch


class Checkpointer(Protocol):
    """Saves the state of a run."""

    def save(self, step: int, bad_rows: list[str]) -> float:
        """Save the state after `step` optimizer steps; all ranks call it. Returns the seconds it held training up."""

    def finish(self) -> None:
        """Wait until what was saved is on the disk; all ranks call it."""

    def describe_latest(self) -> str:
        """The checkpoint a user can go back to, in words."""


@dataclass
class TrainState:
    """The built parts of one run on this rank."""

    run: TrainRun
    world: World
    task: Task
    engine: Engine
    ema: Ema | None
    schedule: Schedule  # optimizer step -> factor of the base learning rate
    batches: Iterator[Batch]  # this rank's micro-batches from `start_step` on
    validation: Callable[[], Iterator[Batch]] | None  # the same batches at every call, shared over the ranks
    metrics: Metrics
    checkpointer: Checkpointer
    stop: StopRequest
    start_step: int = 0
    bad_rows: list[str] = field(default_factory=list)  # over all ranks
    profile_steps: Callable[[range], Iterator[int]] = iter  # yields the steps; some may be recorded on the way
    anomalies: AnomalyDetector = field(default_factory=AnomalyDetector)
    preview: Callable[[int], None] | None = None  # makes sample videos after this number of steps; all ranks call it

    def engines(self, step: int) -> dict[str, Engine | DiscriminatorTrainer]:
        """The networks that learn in optimizer step `step`: they are updated together or not at all."""
        engines: dict[str, Engine | DiscriminatorTrainer] = {MODEL: self.engine}
        discriminator = self.task.discriminator
        if discriminator is not None and step >= discriminator.start_step:
            engines["discriminator"] = discriminator
        return engines


def train(state: TrainState) -> bool:
    """Run the remaining steps; returns False when a signal ended it early (the state is saved either way).

    Raises TrainingDiverged where an anomaly ends the run, DataError above max_bad_rows.
    """
    run = state.run
    for step in state.profile_steps(range(state.start_step, run.steps)):
        state.stop.step = step + 1
        record = train_step(state, step)
        done, stop = record.step, record.totals.stop
        if record.anomaly is not None:
            _report_anomaly(state, record)
        _stop_if_too_many_bad_rows(state, record)
        if record.anomaly is None and (done % run.log_every == 0 or done == run.steps or stop):
            state.metrics.log(record)
        if stop:  # nothing else first: the sender of the signal may not wait long
            _save(state, done)
            state.checkpointer.finish()
            return done == run.steps
        if state.validation is not None and _due(run.validate_every, done, run.steps):
            state.metrics.log_validation(done, validate(state))
        if state.preview is not None and _due(run.preview_every, done, run.steps):
            state.preview(done)
        if _due(run.save_every, done, run.steps):
            _save(state, done)
    state.checkpointer.finish()
    return True


def train_step(state: TrainState, step: int) -> StepRecord:
    """All micro-batches of one step, then one update of all weights; of none where the numbers show an anomaly."""
    stats, engines, discriminator = StepStats(), state.engines(step), state.task.discriminator
    accumulate = state.run.micro_batches // state.world.data_size
    for micro in range(accumulate):
        batch, last = next(state.batches), micro == accumulate - 1
        seed_dropout(state.run.seed, step, batch.sample_ids[0])
        with state.engine.accumulating(last):
            loss = state.task.loss(state.engine.model, batch)
            state.engine.backward(loss.loss_B.mean() / accumulate)
        stats.add(batch, loss)
        if discriminator is not None and loss.discriminator_inputs is not None:
            metrics = discriminator.accumulate(*loss.discriminator_inputs, scale=1 / accumulate, last=last)
            stats.add_metrics(metrics, len(loss.loss_B))
    totals = stats.all_reduce(state.world, stop=state.stop.requested)  # the losses reach the host here
    grad_norms = {name: engine.grad_norm() for name, engine in engines.items()}
    anomaly, lr_factor = state.anomalies.check(step, totals.loss, grad_norms), state.schedule(step)
    for engine in engines.values():
        if anomaly is None:
            engine.update(lr_factor)  # clip, optimizer.step, clear the gradients
        else:
            engine.discard_gradients()
    if state.ema is not None and anomaly is None:
        state.ema.update()
    return StepRecord(
        step=step + 1,
        totals=totals,
        grad_norm=grad_norms[MODEL],
        lr=state.engine.base_lr * lr_factor,
        seconds=round(stats.seconds(), 4),
        stats=stats,
        anomaly=anomaly,
        skipped=state.anomalies.skipped,
    )


def seed_dropout(seed: int, step: int, sample_id: int) -> None:
    """Key the random numbers of the modules by optimizer step and the id of the micro-batch's first sample."""
    torch.manual_seed(key_seed(seed, "dropout", step, sample_id))


def validate(state: TrainState) -> dict[str, float]:
    """The task's metrics on the validation clips, means over the samples of all ranks; training is left as it is.

    Where the task measures weights, those of the average as well, with "ema_" before their names.
    """
    assert state.validation is not None
    with evaluation_mode(state.task.trained, state.world.device):
        values = state.task.validate(state.engine.model, state.validation())
        if state.ema is not None and state.task.measures_weights:
            with state.ema.applied():
                average = state.task.validate(state.engine.model, state.validation())
            values |= {f"ema_{name}": value for name, value in average.items()}
    names = sorted(values)
    sums = sum_over_ranks(torch.tensor([values[name] for name in names], dtype=torch.float64).view(-1, 2))
    return {name: total / count for name, (total, count) in zip(names, sums.tolist(), strict=True) if count}


def _save(state: TrainState, step: int) -> None:
    state.metrics.log_save(step, state.checkpointer.save(step, state.bad_rows))


def _due(every: int, done: int, steps: int) -> bool:
    """True after every `every` steps (0 = never) and after the last."""
    return done == steps or (every > 0 and done % every == 0)


def _report_anomaly(state: TrainState, record: StepRecord) -> None:
    """Log a step that was not made, with its samples; raises TrainingDiverged when the run is to end."""
    anomalies, step = state.anomalies, record.step
    samples = {each["place"]: each for rank in gather_objects(record.stats.per_sample()) for each in rank}
    state.metrics.log_trouble(
        step,
        {
            "what": record.anomaly,
            "did": "stop" if anomalies.ends_run else "skip",
            "skipped": record.skipped,
            "loss": record.totals.loss,
            "grad_norm": record.grad_norm,
            "samples": [samples[sample_id] for sample_id in sorted(samples)],
        },
    )
    if not anomalies.ends_run:
        return
    row = f" ({anomalies.in_a_row} in a row)" if anomalies.in_a_row > 1 else ""
    raise TrainingDiverged(
        f"training: {record.anomaly} between step {step - 1} and step {step}{row}; the weights were not updated; last good "
        f"checkpoint: {state.checkpointer.describe_latest()}; lower optimizer.lr or grad_clip, or look at the clips of that "
        f"step with `opensora replay {state.run.run_dir} step={step}`"
    )


def _stop_if_too_many_bad_rows(state: TrainState, record: StepRecord) -> None:
    if not record.totals.bad_rows:
        return
    known, limit = {_row(message) for message in state.bad_rows}, state.run.max_bad_rows
    for message in [message for rank in gather_objects(record.stats.bad_rows) for message in rank]:
        if _row(message) not in known:
            known.add(_row(message))
            state.bad_rows.append(message)
    logger().warning("%d manifest rows could not be used so far (max_bad_rows=%d)", len(state.bad_rows), limit)
    if len(state.bad_rows) > limit:
        raise DataError(
            f"dataset: {len(state.bad_rows)} rows could not be used, the last: {state.bad_rows[-1]}; allowed: "
            f"max_bad_rows={limit}; fix the manifest or raise max_bad_rows; checkpoint: "
            f"{state.checkpointer.describe_latest()}"
        )


def _row(message: str) -> str:
    """The manifest line that a message begins with: ranks that meet different faults of a row count it once."""
    return message.partition(": ")[0]
