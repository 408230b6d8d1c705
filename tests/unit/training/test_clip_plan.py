"""The clip sizes that a run trains at, and the errors for sizes that it cannot."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.config import load
from opensora.datasets.bucket_report import BucketLine
from opensora.datasets.buckets import Bucket
from opensora.errors import ConfigError, DataError
from opensora.parallel import world
from opensora.parallel.engine import EngineOptions
from opensora.planning.dry_run import dry_run
from opensora.registry import DATASETS, PLUGINS, build
from opensora.schema import TrainRun
from opensora.training.clip_plan import ClipPlan, build_buckets, check_latents, make_clip_plan, single_clip_batches
from opensora.training.memory_warmup import warm_up
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch
from tests.dist import one_rank
from tests.support.command import ROOT
from tests.support.media_files import write_manifest

DEBUG = str(ROOT / "configs/stdit2/train/debug_buckets.py")


def run(**changes: Any) -> TrainRun:
    return replace(load(DEBUG, [], TrainRun).run, **changes)


def clips(base: TrainRun) -> ClipPlan:
    return make_clip_plan(base, build(DATASETS, base.dataset), "here.py")


def test_run_is_planned_for_its_most_frequent_size() -> None:
    """Of 96 clips the 24 pictures of either size fill 6 and 3 steps, the videos more than twice their pixels."""
    plan = clips(run(image_ratio=None))
    steps = {line.size: line.steps for line in plan.report.lines_by_bucket}  # type: ignore[union-attr]
    assert steps[1, 16, 32] == 24 // 4
    assert steps[1, 16, 16] == 24 // 8
    pixels = {
        size: count * size[0] * size[1] * size[2] * batch for (size, count), batch in zip(steps.items(), (1, 2, 2, 4))
    }
    assert plan.size == max(pixels, key=lambda size: pixels[size])
    vae = SimpleNamespace(latent_size=lambda size: size)
    assert plan.largest(vae).volume == 5 * 16 * 32
    squeezing = SimpleNamespace(latent_size=lambda size: (1, *size[1:]))  # then four pictures are the most
    assert plan.largest(squeezing).size == (1, 16, 32)


def test_single_clip_batches_have_the_planned_size() -> None:
    """Rows of that bucket alone, the same at every call."""
    plan = clips(run())
    batches = list(single_clip_batches(plan, seed=5, micro_batches=6))
    assert [tuple(batch.video_BCTHW.shape) for batch in batches] == [(1, 3, *plan.size)] * 6
    assert plan.order is not None
    chosen = plan.order.choices(0)
    assert {plan.order.size(chosen[row]) for batch in batches for row in batch.rows} == {plan.size}
    again = list(single_clip_batches(plan, seed=5, micro_batches=6))
    assert all(torch.equal(a.video_BCTHW, b.video_BCTHW) for a, b in zip(batches, again, strict=True))


def test_without_buckets_a_data_set_says_its_size(tmp_path: Path) -> None:
    plain = {"type": "VideoTextDataset", "data_path": write_manifest(tmp_path, clips=2)}
    base = run(bucket_config=None, image_ratio=None, warmup_buckets=False)
    with pytest.raises(ConfigError, match=r"here\.py: .*'dataset'.*num_frames.*image_size.*allowed: "):
        clips(replace(base, dataset=plain))
    plan = clips(replace(base, dataset={**plain, "num_frames": 4, "image_size": (16, 16)}))
    assert (plan.size, plan.order) == ((4, 16, 16), None)
    with pytest.raises(ConfigError, match=r"num_frames=4, image_size=None.*bucket_config"):
        clips(run(dataset={**plain, "num_frames": 4}))
    with pytest.raises(ConfigError, match=r"'dataset\.num_frames', 'dataset\.image_size'.*bucket_config"):
        clips(run(dataset={**plain, "num_frames": 4, "image_size": (16, 16)}))
    with pytest.raises(DataError, match=r"train\.csv: bucket_config .* 2 rows"):
        clips(run(dataset=plain))


def test_what_cannot_be_trained_in_buckets() -> None:
    with pytest.raises(ConfigError, match=r"here\.py: .*'bucket_config'.*MovingShapes.*allowed: "):
        clips(run(dataset={"type": "MovingShapes"}))
    for model in ("STDiT-XL/2", "DiT-XL/2", "Latte-XL/2"):
        with pytest.raises(ConfigError, match=rf"several sizes.*{model}.*allowed"):
            build_buckets(run(model={"type": model}), "here.py")
    with pytest.raises(ConfigError, match=r"\[1, 5\] frames.*PixArtMS-XL/2"):
        build_buckets(run(model={"type": "PixArtMS-XL/2"}), "here.py")
    assert build_buckets(run(model={"type": "PixArtMS-XL/2"}, bucket_config={"512": {1: (1.0, 1)}}), "here.py")
    with pytest.raises(ConfigError, match=r"here\.py: .*'513p'.*144p, "):
        build_buckets(run(bucket_config={"513p": {1: (1.0, 1)}}), "here.py")


def test_latents_that_do_not_fit_name_their_bucket() -> None:
    plan = clips(run())
    halves = SimpleNamespace(latent_size=lambda size: (size[0], size[1] // 2, size[2] // 2))
    check_latents(plan, halves, SimpleNamespace(patch_size=(1, 3, 3), pads=True), "here.py")
    check_latents(plan, halves, None, "here.py")
    message = re.escape(
        "here.py: key 'bucket_config': 16x32 0.50: 5x16x32 gives latents of (5, 8, 16), which patches of "
    )
    with pytest.raises(ConfigError, match=message):
        check_latents(plan, halves, SimpleNamespace(patch_size=(1, 3, 3), pads=False), "here.py")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("image_ratio=1.5", "key 'image_ratio': found 1.5; allowed: 0 to 1"),
        ("bucket_config=none", "key 'image_ratio': belongs to bucket_config"),
        ("seed=-1", "key 'seed': found -1; allowed with bucket_config: 0 or more"),
        ("bucket_config={'16x16': 3}", "key 'bucket_config': found "),
    ],
)
def test_mistaken_keys(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load(DEBUG, [override], TrainRun)


def test_the_dry_run_counts_the_largest_bucket() -> None:
    """5x16x32 becomes 3x8x16 latents, 96 patches of 2x2; the videos are not opened, as there are none."""
    result = dry_run(run(), world=1)
    assert result.summary.latent_size == (3, 8, 16)
    assert (result.summary.tokens_per_sample, result.samples_per_step) == (96, 2)
    assert result.report.steps == 18
    assert (
        result.summary.parameters
        == dry_run(run(bucket_config={"16x16": {1: (1.0, 4)}}, image_ratio=None), world=1).summary.parameters
    )


class Sum:
    """A task with a weight per channel, that uses up random numbers."""

    def __init__(self) -> None:
        self.trained = self.autoencoder = nn.Linear(3, 1)
        self.batches: list[Batch] = []

    def loss(self, model: Any, batch: Batch) -> MicroBatchLoss:
        self.batches.append(batch)
        loss_B: Tensor = model(batch.video_BCTHW.mean((2, 3, 4)) + torch.rand(3)).flatten()
        return MicroBatchLoss(loss_B, None, tokens=7)


@pytest.fixture
def alone() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.usefixtures("alone")
def test_warming_up_leaves_no_trace() -> None:
    task = Sum()
    engine = build(PLUGINS, {"type": "ddp"}).apply(
        task.trained, EngineOptions(lambda params: torch.optim.AdamW(params, lr=1.0), "fp32", 0.0, world.current())
    )
    gradients = []
    task.trained.weight.register_hook(lambda gradient: gradients.append(gradient.clone()))
    weights = {name: value.clone() for name, value in task.trained.state_dict().items()}
    state = torch.get_rng_state()
    warm_up(task, engine, BucketLine(Bucket("8x16", 4, "0.50"), (4, 8, 16), 3, 99, 9, 6), seed=1)  # type: ignore[arg-type]
    assert [tuple(batch.video_BCTHW.shape) for batch in task.batches] == [(3, 3, 4, 8, 16)]
    assert task.batches[0].sample_ids == [0, 1, 2]
    assert gradients[0].abs().sum() > 0  # it did go backward
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in task.trained.state_dict().items())
    assert all(parameter.grad is None for parameter in task.trained.parameters())
    assert not engine.optimizer.state
