"""The clip sizes of a run: one, the data set's own, or those of `bucket_config`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TypeGuard

import numpy as np

from opensora.datasets.base import ClipSize, Dataset, SizedDataset
from opensora.datasets.bucket_plan import BucketOrder
from opensora.datasets.bucket_report import BucketLine, BucketReport
from opensora.datasets.buckets import Buckets
from opensora.datasets.loader import build_loader
from opensora.datasets.row_report import Report
from opensora.datasets.sampler import EpochOrder, Request
from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder, Denoiser
from opensora.models.shape_checks import ShapeError
from opensora.registry import MODELS, class_of
from opensora.schema import TrainRun
from opensora.training.caption_check import drop_empty_captions
from opensora.types import Batch


@dataclass(frozen=True)
class ClipPlan:
    """The data set and the sizes of its clips."""

    dataset: Dataset
    num_frames: int  # of most clips; the default of sampling
    image_size: tuple[int, int]  # height, width in pixels
    report: Report | BucketReport
    order: BucketOrder | None = None  # None: every row has that one size

    @property
    def size(self) -> ClipSize:
        return self.num_frames, *self.image_size

    @property
    def sizes(self) -> list[ClipSize]:
        """All sizes of the run, ascending."""
        trained = self.report.trained if isinstance(self.report, BucketReport) else []
        return sorted({line.size for line in trained} | {self.size})

    @property
    def lengths(self) -> list[tuple[str, int]]:
        """(key of the config, frames) of every clip length; of `bucket_config` those without rows as well."""
        if self.order is not None:
            return bucket_lengths(self.order.buckets)
        return [(num_frames_key(joint=hasattr(self.dataset, "videos")), self.num_frames)]

    def largest(self, vae: Autoencoder) -> BucketLine:
        """The bucket whose micro-batch has the most latents; only with `order`."""
        assert isinstance(self.report, BucketReport)
        return max(self.report.trained, key=lambda line: line.batch_size * prod(vae.latent_size(line.size)))


def build_buckets(run: TrainRun, where: str) -> Buckets | None:
    """Check `bucket_config`; None without one. Raises ConfigError, before any manifest or weight is read."""
    if run.bucket_config is None:
        return None
    try:
        buckets = Buckets(run.bucket_config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if run.model is not None:
        model: type[Denoiser] = class_of(MODELS, run.model["type"])
        lengths = sorted({frames for lengths in buckets.lengths.values() for frames in lengths})
        if model.fixed_size or (model.fixed_frames and len(lengths) > 1):
            kind = "clips of several sizes" if model.fixed_size else f"clips of {lengths} frames"
            raise ConfigError(
                f"{where}: key 'bucket_config': {kind}, and {run.model['type']} trains on clips of one "
                f"{'size' if model.fixed_size else 'length'}; allowed: a model of any size, such as STDiT2 or STDiT3; change "
                "the model, or remove the key and set dataset.num_frames and dataset.image_size"
            )
    return buckets


def num_frames_key(joint: bool) -> str:
    """The key that says how long the clips of a data set are. joint: it is a JointDataset."""
    return f"key 'dataset{'.videos' if joint else ''}.num_frames'"


def bucket_lengths(buckets: Buckets) -> list[tuple[str, int]]:
    """(key of the config, frames) of every length of every resolution that takes clips."""
    used = dict.fromkeys((each.resolution, each.num_frames) for each in buckets.all if buckets.takes(each))
    return [(f"key 'bucket_config.{resolution}'", frames) for resolution, frames in used]


def _is_sized(dataset: Dataset) -> TypeGuard[SizedDataset]:
    return hasattr(dataset, "sizes")


def make_clip_plan(run: TrainRun, dataset: Dataset, where: str) -> ClipPlan:
    """The clips of a run.

    Raises ConfigError when data set and `bucket_config` do not fit, DataError when no clip is left.
    """
    buckets = build_buckets(run, where)
    drop_empty_captions(dataset, run.text_encoder)
    if buckets is None:
        require_fixed_size(dataset, f"{where}: key 'dataset'")
        report = dataset.report()
        report.require_rows()
        return ClipPlan(dataset, dataset.num_frames, dataset.image_size, report)
    if not _is_sized(dataset):
        raise ConfigError(
            f"{where}: key 'bucket_config': {run.dataset['type']} makes clips of one size; allowed: VideoTextDataset, "
            "MixedShapes; change the data set or remove the key"
        )
    if getattr(dataset, "has_size", False):
        raise ConfigError(
            f"{where}: keys 'dataset.num_frames', 'dataset.image_size': bucket_config says how long and large clips are; "
            "remove them, or bucket_config"
        )
    dataset.report().require_rows()
    order = BucketOrder(dataset, buckets, seed=run.seed, micro_batches=run.micro_batches, image_ratio=run.image_ratio)
    bucket_report = order.report()
    frames, height, width = bucket_report.largest_share.size
    return ClipPlan(dataset, frames, (height, width), bucket_report, order)


def require_fixed_size(dataset: Dataset, where: str) -> None:
    """Raise ConfigError for a data set without a clip size, or whose clips differ in size."""
    if getattr(dataset, "multi_scale", False):
        raise ConfigError(
            f"{where}: multi_scale=True: clips keep their aspect ratio and make no batch by themselves; allowed: as videos or "
            "images of a JointDataset, which pads them; use one, remove multi_scale, or set bucket_config"
        )
    if not getattr(dataset, "has_size", True):
        raise ConfigError(
            f"{where}: num_frames or image_size is missing; allowed: the frames and the (height, width) in pixels of all "
            "clips; set both, or set bucket_config for clips of many sizes"
        )


def check_latents(clips: ClipPlan, vae: Autoencoder, model: Denoiser | None, where: str) -> None:
    """Raise ConfigError for a bucket that does not fit the autoencoder or the denoiser.

    model: None if the autoencoder itself is trained.
    """
    for line in clips.report.trained if isinstance(clips.report, BucketReport) else ():
        try:
            latents = vae.latent_size(line.size)
        except ShapeError as error:
            raise ConfigError(f"{where}: key 'bucket_config': {line.name()}: {error}") from None
        if model is None or model.pads:
            continue
        if any(length % patch for length, patch in zip(latents, model.patch_size, strict=True)):
            raise ConfigError(
                f"{where}: key 'bucket_config': {line.name()} gives latents of {tuple(latents)}, which patches of "
                f"{tuple(model.patch_size)} do not divide; allowed: sizes that they divide, for example resolutions that "
                "end in _16d; change the bucket or the model"
            )


def single_clip_batches(
    clips: ClipPlan, *, seed: int, micro_batches: int, size: ClipSize | None = None
) -> Iterator[Batch]:
    """The batches of one optimizer step, each of one clip; bad rows are skipped as in training.

    size: one of `clips.sizes`; None: the planned one.
    """
    order = None if clips.order is None else _SingleBucketOrder(clips, size or clips.size, seed, micro_batches)
    return build_loader(clips.dataset, seed=seed, batch_size=1, micro_batches=micro_batches, steps=1, order=order)


class _SingleBucketOrder:
    """An order of the rows that the first epoch puts into the buckets of one size."""

    def __init__(self, clips: ClipPlan, size: ClipSize, seed: int, micro_batches: int) -> None:
        assert clips.order is not None
        numbers = [n for n in range(len(clips.order.buckets)) if clips.order.size(n) == size]
        self.rows = np.flatnonzero(np.isin(clips.order.choices(0), numbers))
        self._order = EpochOrder(len(self.rows), seed, 1, micro_batches, size)

    def request(self, step: int, micro_batch: int) -> Request:
        request = self._order.request(step, micro_batch)
        return replace(request, candidates=self.rows[request.candidates])
