"""Dry run: the parameters, memory, arithmetic and traffic of a run, without weights, an accelerator or decoded data.

The run's own modules take a step on the meta device (meta_profile.py); the rest is arithmetic.
"""

import inspect
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from opensora.datasets.base import ClipSize
from opensora.datasets.bucket_report import BucketReport
from opensora.datasets.row_report import Report
from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder
from opensora.models.frame_counts import require_frame_counts
from opensora.planning.autoencoder_step import autoencoder_step
from opensora.planning.denoiser_step import denoiser_step
from opensora.planning.estimate import Estimate, ModelSummary, StepModel, estimate
from opensora.planning.parallel_layout import ParallelLayout
from opensora.registry import DATASETS, VAES, build, constructor
from opensora.schema import TrainRun
from opensora.training.checkpoint import resolve_part
from opensora.training.clip_plan import ClipPlan, bucket_lengths, build_buckets, make_clip_plan, num_frames_key


@dataclass(frozen=True)
class DryRun:
    """Counts of one run, and the estimate of its own layout."""

    summary: ModelSummary
    step: StepModel
    estimate: Estimate
    samples_per_step: int
    report: Report | BucketReport | None = None  # of the data set's rows; None: the data were not read
    clips: ClipPlan | None = None  # None: the data were not read

    def estimate_with(self, **changes: Any) -> Estimate:
        """The estimate of the same step under another layout."""
        return estimate(self.step, replace(self.estimate.layout, **changes))


def dry_run(run: TrainRun, world: int, sp_size: int = 1, gloo: bool = False) -> DryRun:
    """Count parameters, tokens, rows and bytes for `world` ranks; raises ConfigError or DataError as training would.

    With buckets the clip size is that of the largest micro-batch. sp_size: ranks that share each sample, its tokens or,
    under hybrid, its heads. gloo: the ranks are processes on CPUs.
    """
    run = resolve_defaults(run)
    dataset = build(DATASETS, run.dataset)
    clips = make_clip_plan(run, dataset, "config")
    report = clips.report
    size = clips.size
    vae = _checked_autoencoder(run, clips.lengths)
    if clips.order is not None:
        largest = clips.largest(vae)
        run, size = replace(run, batch_size=largest.batch_size), largest.size
    elif hasattr(dataset, "inspect") and run.load_video_features is None:  # with stored latents no video is read
        report = dataset.inspect()  # opens every video
        report.require_rows()
    return replace(estimate_run(run, size, world, sp_size, gloo), report=report, clips=clips)


def dry_run_without_data(run: TrainRun, world: int, sp_size: int = 1, gloo: bool = False) -> DryRun:
    """`dry_run` from the config alone, for data on another machine: no row is read, and every bucket counts."""
    run = resolve_defaults(run)
    buckets = build_buckets(run, "config")
    if buckets is None:
        size = _config_clip_size(run.dataset)
        _checked_autoencoder(run, [(num_frames_key(joint="videos" in run.dataset), size[0])])
        return estimate_run(run, size, world, sp_size, gloo)
    vae = _checked_autoencoder(run, bucket_lengths(buckets))
    usable = [(buckets.batch_size(bucket), buckets.size(bucket)) for bucket in buckets.all if buckets.takes(bucket)]
    batch_size, size = max(usable, key=lambda pair: pair[0] * prod(vae.latent_size(pair[1])))
    return estimate_run(replace(run, batch_size=batch_size), size, world, sp_size, gloo)


def _checked_autoencoder(run: TrainRun, lengths: list[tuple[str, int]]) -> Autoencoder:
    """The run's autoencoder without weights. Raises ConfigError where it would drop frames of clips."""
    with torch.device("meta"):
        vae: Autoencoder = build(VAES, run.vae)
    if run.load_video_features is None:
        validation = run.validation_dataset or {}
        if "num_frames" in validation:
            lengths = [*lengths, ("key 'validation_dataset.num_frames'", validation["num_frames"])]
        require_frame_counts(vae, lengths, "config")
    return vae


def estimate_run(run: TrainRun, size: ClipSize, world: int, sp_size: int = 1, gloo: bool = False) -> DryRun:
    """`dry_run` for clips of (frames, height, width) in pixels, without a data set."""
    layout = config_layout(run, world, sp_size, gloo)
    summary, step = model_step(run, size, layout)
    return DryRun(summary, step, estimate(step, layout), run.batch_size * run.micro_batches)


def model_step(run: TrainRun, size: ClipSize, layout: ParallelLayout) -> tuple[ModelSummary, StepModel]:
    """The training step of a run on clips of (frames, height, width) in pixels.

    layout: of the run itself; the step can be estimated under others with the same tp_size. Raises
    ConfigError when the model has not that many heads to share.
    """
    make_step = autoencoder_step if run.task == "autoencoder" else denoiser_step
    with torch.device("meta"):
        return make_step(run, size, layout)


def resolve_defaults(run: TrainRun) -> TrainRun:
    """The run with bf16 in place of dtype "auto", as today's accelerators choose, and with its weights resolved."""
    return replace(run, dtype="bf16" if run.dtype == "auto" else run.dtype, vae=resolve_part(run.vae))


def config_layout(run: TrainRun, world: int, sp_size: int = 1, gloo: bool = False) -> ParallelLayout:
    """The layout of the run's own plugin on `world` ranks, of which `sp_size` share each sample."""
    layout = ParallelLayout(
        plugin=run.plugin,
        world=world,
        micro_batches=1,
        plugin_config=run.plugin_config,
        dtype=run.dtype,
        sp_mode=run.sp_mode,
        grad_checkpoint=run.grad_checkpoint,
        gloo=gloo,
    )
    group_size = max(sp_size, layout.tp_size)
    return replace(
        layout, sp_size=group_size // layout.tp_size, micro_batches=max(1, run.micro_batches * group_size // world)
    )


def _config_clip_size(dataset: dict[str, Any]) -> ClipSize:
    """(frames, height, width) that the config gives a data set, or that are its defaults."""
    if "videos" in dataset:  # a JointDataset, padded to the larger of its two parts
        frames, *sides = _config_clip_size(dataset["videos"])
        if dataset["pictures"] is not None:
            sides = [max(pair) for pair in zip(sides, _config_clip_size(dataset["pictures"])[1:], strict=True)]
        return frames, sides[0], sides[1]
    parameters = inspect.signature(constructor(DATASETS, dataset["type"])).parameters
    keys = ("num_frames", "image_size")
    values = {name: parameters[name].default for name in keys if name in parameters} | dataset
    if any(values.get(name) in (None, inspect.Parameter.empty) for name in keys):
        raise ConfigError(
            "config: key 'dataset': num_frames or image_size is missing; allowed: both, or bucket_config; set them, or "
            "run without --no-data"
        )
    return values["num_frames"], *values["image_size"]
