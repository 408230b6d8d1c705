"""One optimizer step of a run once more: the same weights, data and noise, from the checkpoint before it.

Only reads the run's folder, so it works on a run that has stopped as on one that goes on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.log import logger
from opensora.parallel.collectives import gather_objects
from opensora.parallel.world import World
from opensora.rng import key_seed
from opensora.schema import TrainRun
from opensora.training import checkpoint
from opensora.training.build import build_training
from opensora.training.loop import Taken, TrainState, train_step
from opensora.training.metrics import read
from opensora.training.run_folder import RunFolder
from opensora.types import Batch

EQUAL = 1e-6  # relative difference up to which numbers are called the same: rounding on other ranks


@dataclass(frozen=True)
class Replay:
    """What the step was this time, alike on all ranks."""

    step: int  # optimizer steps done after it
    start: int  # the checkpoint's
    loss: float
    grad_norm: float  # before clipping
    trouble: str | None  # why the run's own rules do not make it
    samples: list[dict[str, Any]]  # place, row, level, loss, caption of each; grad_norm where it was asked for

    def suspects(self) -> list[dict[str, Any]]:
        """The samples whose loss or gradient is not finite."""
        wrong = [each for each in self.samples if not math.isfinite(each["loss"])]
        return wrong or [each for each in self.samples if not math.isfinite(each.get("grad_norm", 0.0))]


class ReplayFolder(RunFolder):
    """A run's folder from which the newest checkpoint of at most `up_to` steps is taken; nothing is locked or written."""

    writes = False
    change_note = "the step is made with the new value"

    def __init__(self, run: TrainRun, world: World, up_to: int):
        self.path = Path(run.run_dir)
        self.run = run
        self.world = world
        self._background = None
        self._up_to = up_to

    def resume(self) -> tuple[int, list[str]]:
        """Take over that checkpoint; without one the run's first weights stay."""
        found = checkpoint.find(self.path, self._up_to)
        if found is None:
            logger().warning(
                "%s: no checkpoint of step %d or before is kept: from the beginning", self.path, self._up_to
            )
            return 0, []
        self._report_changes({**found.meta["config"], "ema_decay": self.run.ema_decay})  # which a replay leaves out
        self.restore(found)
        logger().info("replaying from %s", found.folder)
        return found.step, list(found.meta["bad_rows"])

    def save(self, step: int, bad_rows: list[str]) -> float:
        raise AssertionError("a replay saves nothing")


def build_replay(run: TrainRun, world: World, where: str, step: int) -> TrainState:
    """The run as it was before the step that ends with `step` optimizer steps done, or before an earlier one.

    Raises ConfigError when the run has no such step.
    """
    if not 1 <= step <= run.steps:
        raise ConfigError(f"{where}: step={step} found; allowed: 1 to steps={run.steps}; name a step of the run")
    quiet = replace(
        run,
        validation_dataset=None,
        preview_every=0,
        preview_prompts=[],
        ema_decay=None,  # an average learns of the run and tells it nothing
        wandb=False,
        num_workers=0,
        profile_steps=0,
    )
    return build_training(quiet, world, where, ReplayFolder(quiet, world, up_to=step - 1))


def replay(t: TrainState, step: int, gradients: bool = False) -> Replay:
    """Go on from where `t` starts and make the step that ends with `step` steps done; all ranks call it.

    gradients: measure each sample's own gradient norm, which costs a backward for each. That is done unasked when the
    gradient is not finite though every loss is: then the loss does not tell whose fault it is.
    """
    for earlier in range(t.start_step, step - 1):
        taken = train_step(t, earlier)
        logger().info("step %d: loss %.6f%s", earlier + 1, taken.total.loss, _refused(taken))
        _heed(t)
    batches = [next(t.batches) for _ in range(t.run.micro_batches // t.world.data_size)]
    norms = per_sample_grad_norms(t, batches, step - 1) if gradients else {}
    t.batches = iter(batches)
    taken = train_step(t, step - 1)
    told = {
        sample_id: batch.captions[i * (1 + batch.num_images)]
        for batch in batches
        for i, sample_id in enumerate(batch.sample_ids)
    }
    hidden = not math.isfinite(taken.outcome.grad_norm) and all(
        math.isfinite(each["loss"]) for rank in gather_objects(taken.tally.samples_seen()) for each in rank
    )
    if hidden and not gradients and _whole_gradients(t):
        norms = per_sample_grad_norms(
            t, batches, step - 1
        )  # the step was refused, so the weights are still those before it
    mine = [
        {**each, "caption": told[each["place"]]} | ({"grad_norm": norms[each["place"]]} if norms else {})
        for each in taken.tally.samples_seen()
    ]
    samples = {each["place"]: each for rank in gather_objects(mine) for each in rank}
    return Replay(
        step=step,
        start=t.start_step,
        loss=taken.total.loss,
        grad_norm=taken.outcome.grad_norm,
        trouble=taken.outcome.trouble,
        samples=[samples[sample_id] for sample_id in sorted(samples)],
    )


def per_sample_grad_norms(t: TrainState, batches: Sequence[Batch], step: int) -> dict[int, float]:
    """Place -> norm of the gradient of that sample's loss, for this rank's samples. No weight or gradient changes.

    Each goes through the model alone: in one graph a NaN of one sample reaches the others, as 0 * NaN is NaN.
    Raises ConfigError under plugins and layouts where no rank sees whole weights.
    """
    if not _whole_gradients(t):
        raise ConfigError(
            f"replay: gradients=true under plugin {t.run.plugin!r} with {t.world.sequence_size} rank(s) per sample; allowed: "
            "whole weights and whole samples; add plugin=ddp sp_size=1"
        )
    trained = list(t.engine.trainable.values())
    norms = {}
    for batch in batches:
        for i, sample_id in enumerate(batch.sample_ids):
            torch.manual_seed(key_seed(t.run.seed, "dropout", step, sample_id))
            loss_B = t.task.step(t.engine.model, _alone(batch, i)).loss_B
            found = torch.autograd.grad(loss_B.sum(), trained, allow_unused=True)
            norms[sample_id] = _norm([each for each in found if each is not None])
    return norms


def _alone(batch: Batch, i: int) -> Batch:
    """The micro-batch that holds sample i only; all it draws is keyed by its place."""
    each = 1 + batch.num_images
    return replace(
        batch,
        video_BCTHW=batch.video_BCTHW[i : i + 1],
        captions=batch.captions[i * each : (i + 1) * each],
        fps_B=batch.fps_B[i : i + 1],
        sample_ids=[batch.sample_ids[i]],
        rows=[batch.rows[i]],
        valid_BTHW=None if batch.valid_BTHW is None else batch.valid_BTHW[i : i + 1],
    )


def recorded(run_dir: Path, step: int) -> Mapping[str, Any] | None:
    """What metrics.jsonl holds of the step: its loss and grad_norm; None when it was not logged."""
    for record in reversed(read(run_dir / "metrics.jsonl")):
        found = record.get("trouble", record)
        if record["step"] == step and "grad_norm" in found:
            return {"loss": float(found["loss"]), "grad_norm": float(found["grad_norm"])}
    return None


def compare(now: float, then: float) -> str:
    """In words, how a number stands to the one that was logged."""
    if now == then or (math.isnan(now) and math.isnan(then)):
        return "the same, bit for bit"
    difference = abs(now - then) / max(abs(now), abs(then))
    return f"{'the same but for rounding' if difference <= EQUAL else 'DIFFERENT'}: {difference:.1e} apart"


def _whole_gradients(t: TrainState) -> bool:
    return t.engine.sees_gradients and t.world.sequence_size == 1


def _norm(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(each.cpu().double().square().sum().item() for each in gradients))


def _refused(taken: Taken) -> str:
    return "" if taken.outcome.trouble is None else f", not made: {taken.outcome.trouble}"


def _heed(t: TrainState) -> None:
    if t.stop.requested:
        raise KeyboardInterrupt
