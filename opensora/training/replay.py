"""One optimizer step of a run once more: the same weights, data and noise, from the checkpoint before it.

It only reads the run's folder, so it works on a run that has stopped as on one that goes on.
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
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import TrainState, seed_dropout, train_step
from opensora.training.metrics import read
from opensora.types import Batch

# Relative difference up to which numbers are called the same: rounding on other ranks, and on devices in every run.
REL_TOL = {"fp32": 1e-6, "bf16": 1e-4}
REL_TOL_OF_DEVICES = {"fp32": 1e-4, "bf16": 1e-2}  # whose sums have no fixed order without the key `deterministic`


@dataclass(frozen=True)
class Replay:
    """The step as it was made again, alike on all ranks."""

    step: int  # optimizer steps done after it
    start: int  # the checkpoint's
    loss: float
    grad_norm: float  # before clipping
    rel_tol: float  # relative difference of the numbers from those of the run that rounding explains
    anomaly: str | None  # why the run's own rules do not make it
    samples: list[dict[str, Any]]  # place, row, level, loss, caption of each; grad_norm where it was measured

    def suspects(self) -> list[dict[str, Any]]:
        """The samples whose loss or gradient is not finite."""
        bad_losses = [each for each in self.samples if not math.isfinite(each["loss"])]
        return bad_losses or [each for each in self.samples if not math.isfinite(each.get("grad_norm", 0.0))]


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
        ema_decay=None,  # the average follows the run and does not influence it
        wandb=False,
        background_save=False,
        num_workers=0,
        profile_steps=0,
    )
    return build_training(quiet, world, where, replay_from=step - 1)


def replay(state: TrainState, step: int, gradients: bool = False) -> Replay:
    """Go on from `state.start_step` and make the step that ends with `step` steps done; all ranks call it.

    gradients: measure each sample's own gradient norm, which costs a backward for each. Where the step's gradient is not
    finite though every loss is, that is done without being requested: the losses do not show which sample is at fault.
    """
    for earlier in range(state.start_step, step - 1):
        record = train_step(state, earlier)
        skipped = "" if record.anomaly is None else f", not made: {record.anomaly}"
        logger().info("step %d: loss %.6f%s", earlier + 1, record.totals.loss, skipped)
        if state.stop.requested:
            raise KeyboardInterrupt
    batches = [next(state.batches) for _ in range(state.run.micro_batches // state.world.data_size)]
    norms = per_sample_grad_norms(state, batches, step - 1) if gradients else {}
    state.batches = iter(batches)
    record = train_step(state, step - 1)
    captions = {
        sample_id: batch.captions[i * (1 + batch.num_images)]
        for batch in batches
        for i, sample_id in enumerate(batch.sample_ids)
    }
    losses = [each["loss"] for rank in gather_objects(record.stats.per_sample()) for each in rank]
    hidden = not math.isfinite(record.grad_norm) and all(map(math.isfinite, losses))
    if hidden and not gradients and _sees_whole_gradients(state):
        # the step was discarded, so the weights are still those before it
        norms = per_sample_grad_norms(state, batches, step - 1)
    own = [
        {**each, "caption": captions[each["place"]]} | ({"grad_norm": norms[each["place"]]} if norms else {})
        for each in record.stats.per_sample()
    ]
    samples = {each["place"]: each for rank in gather_objects(own) for each in rank}
    return Replay(
        step=step,
        start=state.start_step,
        loss=record.totals.loss,
        grad_norm=record.grad_norm,
        rel_tol=rounding(state.run, state.world.device.type),
        anomaly=record.anomaly,
        samples=[samples[sample_id] for sample_id in sorted(samples)],
    )


def per_sample_grad_norms(state: TrainState, batches: Sequence[Batch], step: int) -> dict[int, float]:
    """Sample id -> norm of the gradient of that sample's loss, for this rank's samples. No weight or gradient changes.

    Each goes through the model alone: in one graph a NaN of one sample reaches the others, as 0 * NaN is NaN.
    Raises ConfigError under plugins and layouts where no rank sees whole weights.
    """
    if not _sees_whole_gradients(state):
        raise ConfigError(
            f"replay: gradients=true under plugin {state.run.plugin!r} with {state.world.sequence_size} rank(s) per sample; "
            "allowed: whole weights and whole samples; add plugin=ddp sp_size=1"
        )
    parameters = list(state.engine.trainable.values())
    norms = {}
    for batch in batches:
        for i, sample_id in enumerate(batch.sample_ids):
            seed_dropout(state.run.seed, step, sample_id)
            loss_B = state.task.loss(state.engine.model, _single_sample(batch, i)).loss_B
            gradients = torch.autograd.grad(loss_B.sum(), parameters, allow_unused=True)
            norms[sample_id] = _norm([each for each in gradients if each is not None])
    return norms


def _single_sample(batch: Batch, i: int) -> Batch:
    """The micro-batch that holds sample i only; all it draws is keyed by its id."""
    captions = 1 + batch.num_images  # of one sample
    return replace(
        batch,
        video_BCTHW=batch.video_BCTHW[i : i + 1],
        captions=batch.captions[i * captions : (i + 1) * captions],
        fps_B=batch.fps_B[i : i + 1],
        sample_ids=[batch.sample_ids[i]],
        rows=[batch.rows[i]],
        valid_BTHW=None if batch.valid_BTHW is None else batch.valid_BTHW[i : i + 1],
    )


def logged_step(run_dir: Path, step: int) -> Mapping[str, Any] | None:
    """The loss and grad_norm of the step in metrics.jsonl; None when it was not logged."""
    for line in reversed(read(run_dir / "metrics.jsonl")):
        numbers = line.get("trouble", line)
        if line["step"] == step and "grad_norm" in numbers:
            return {"loss": float(numbers["loss"]), "grad_norm": float(numbers["grad_norm"])}
    return None


def rounding(run: TrainRun, device_type: str) -> float:
    """The relative difference up to which the numbers of a healthy run's step may change when it is made again."""
    fixed = run.deterministic or device_type == "cpu"
    tolerances = REL_TOL if fixed else REL_TOL_OF_DEVICES
    return max(tolerances[run.dtype], 1e-3 if run.tf32 and not fixed else 0.0)


def describe_difference(now: float, then: float, rel_tol: float) -> str:
    """The relation of a number to the one that was logged, in words; `rel_tol` is what rounding explains."""
    if now == then or (math.isnan(now) and math.isnan(then)):
        return "the same, bit for bit"
    difference = abs(now - then) / max(abs(now), abs(then))
    return f"{'the same but for rounding' if difference <= rel_tol else 'DIFFERENT'}: {difference:.1e} apart"


def _sees_whole_gradients(state: TrainState) -> bool:
    return state.engine.sees_gradients and state.world.sequence_size == 1


def _norm(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(each.cpu().double().square().sum().item() for each in gradients))
