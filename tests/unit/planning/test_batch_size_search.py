"""Batch sizes per bucket: the search with a made-up clock, and the command on a model of a few thousand weights."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opensora.cli.tune_batch import main
from opensora.config import load
from opensora.datasets.base import ClipSize
from opensora.datasets.buckets import Buckets
from opensora.models.build import build_autoencoder
from opensora.models.weights import save_weights
from opensora.planning import batch_size_search as search
from opensora.planning.batch_size_search import (
    BucketResult,
    largest_fitting,
    search_batch_sizes,
    updated_bucket_config,
)
from opensora.platforms import select
from opensora.registry import DATASETS, build
from opensora.schema import TrainRun
from opensora.training.build import build_training
from opensora.training.loop import train
from tests.dist import one_rank
from tests.support.command import ROOT

CONFIG = {
    "144p": {1: (1.0, 7), 51: (1.0, 3)},
    "480p": {1: (0.5, 2), 51: ((0.4, 0.3), 1), 102: (0.0, None)},
}
GOAL, MEMORY = 10.0, 10**9


@pytest.mark.parametrize("first", [1, 3, 8, 64, 200])
def test_largest_fitting_from_any_start(first: int) -> None:
    for limit in range(67):
        tried: list[int] = []

        def fits(n: int, tried: list[int] = tried, limit: int = limit) -> bool:
            tried.append(n)
            return n <= limit

        assert largest_fitting(fits, first, limit=64) == min(limit, 64)
        assert len(tried) == len(set(tried)) <= 14
        assert all(1 <= n <= 64 for n in tried)


def seconds(size: ClipSize, n: int) -> float:
    """A tenth of a second, and one for four million pixels of clips."""
    return 0.1 + n * math.prod(size) / 4e6


def needed(size: ClipSize, n: int) -> int:
    return 10**8 + n * math.prod(size)


def test_goal_and_memory_decide() -> None:
    timed: list[tuple[ClipSize, int]] = []

    def clock(size: ClipSize, n: int) -> float:
        timed.append((size, n))
        return seconds(size, n)

    buckets = Buckets(CONFIG)
    lines = search_batch_sizes(buckets, clock, needed, step_seconds=GOAL, memory=MEMORY, limit=512)
    assert [(line.resolution, line.num_frames) for line in lines] == [
        ("480p", 51), ("144p", 51), ("480p", 1), ("144p", 1)
    ]  # fmt: skip
    for line in lines:
        by_time = int((GOAL - 0.1) * 4e6 / math.prod(line.size))
        assert line.batch_size == min(512, by_time)
        assert line.seconds == seconds(line.size, line.batch_size) <= GOAL
        assert line.bytes == needed(line.size, line.batch_size)
    assert [line.config_batch_size for line in lines] == [1, 3, 2, 7]
    assert lines[0].batch_size == 1
    assert not any(line.too_slow for line in lines)
    assert len(timed) == len(set(timed)) < 60
    # the aspect ratio with the most pixels speaks for its resolution
    sizes = {bucket.resolution: [] for bucket in buckets.all}
    for bucket in buckets.all:
        sizes[bucket.resolution].append(math.prod(buckets.size(bucket)[1:]))
    assert all(math.prod(line.size[1:]) == max(sizes[line.resolution]) for line in lines)


def test_nothing_larger_than_the_memory_is_run() -> None:
    def clock(size: ClipSize, n: int) -> float:
        assert needed(size, n) <= 2 * 10**8
        return 1e-3 * n

    lines = search_batch_sizes(Buckets(CONFIG), clock, needed, step_seconds=GOAL, memory=2 * 10**8, limit=10**4)
    for line in lines:
        assert line.batch_size == 10**8 // math.prod(line.size)
        assert not line.too_slow


def test_too_slow_bucket_stays_and_too_large_goes() -> None:
    def clock(size: ClipSize, n: int) -> float:
        return math.inf if size[0] == 51 and size[1] > 300 else 99.0 if size[0] == 51 else seconds(size, n)

    lines = search_batch_sizes(Buckets(CONFIG), clock, needed, step_seconds=GOAL, memory=MEMORY, limit=32)
    assert [(line.batch_size, line.too_slow) for line in lines[:2]] == [(0, False), (1, True)]
    assert lines[1].seconds == 99.0
    config = updated_bucket_config(CONFIG, lines)
    assert config["480p"] == {1: (0.5, lines[2].batch_size), 51: (0.0, None), 102: (0.0, None)}
    assert config["144p"][51] == (1.0, 1)
    assert not any(bucket[:2] == ("480p", 51) for bucket in search._largest_buckets(Buckets(config)))


def test_rows_limit_the_batch() -> None:
    reported: list[BucketResult] = []
    most = {("480p", 51): 5, ("144p", 51): 3, ("480p", 1): 40}
    lines = search_batch_sizes(
        Buckets(CONFIG),
        lambda size, n: n / 10,
        needed,
        step_seconds=2.0,
        memory=10**12,
        most=most,
        report=reported.append,
    )
    assert reported == lines
    assert [(line.resolution, line.num_frames, line.batch_size, line.most) for line in lines] == [
        ("480p", 51, 5, 5), ("144p", 51, 3, 3), ("480p", 1, 20, None), ("144p", 1, 20, None)
    ]  # fmt: skip


def test_most_clips_of_the_largest_ratio_make_one_step() -> None:
    """Seven rows of one shape and two of another, in two micro-batches."""
    dataset = build(DATASETS, {"type": "MixedShapes", "clips": 9, "sizes": [(6, 16, 32)]})
    assert search.most_clips(dataset, Buckets({"16x32": {5: (1.0, 1), 9: (1.0, 1)}}), seed=0, micro_batches=2) == {
        ("16x32", 5): 4, ("16x32", 9): 1
    }  # fmt: skip


def test_chances_stay_as_they_are() -> None:
    line = BucketResult("480p", 51, (51, 480, 854), 1, 9, 1.0, 1, False)
    assert updated_bucket_config({"480p": {"51": [[0.4, 0.3], 1]}}, [line]) == {"480p": {51: ([0.4, 0.3], 9)}}


@pytest.fixture
def config(tmp_path: Path) -> str:
    """One bucket of the debug run: each estimate costs a rehearsal of the step."""
    file = tmp_path / "config.py"
    base = ROOT / "configs/stdit2/train/debug_buckets.py"
    file.write_text(f"_base_ = [{str(base)!r}]\nbucket_config = {{'_delete_': True, '16x16': {{5: (0.5, 1)}}}}\n")
    return str(file)


@pytest.mark.parametrize(("plugin", "dtype"), [("ddp", "float32"), ("hybrid", "float32"), ("zero2", "bfloat16")])
def test_weights_are_timed_in_the_type_that_the_plugin_keeps(config: str, plugin: str, dtype: str) -> None:
    """The forward is that of training: inputs are cast to bfloat16 weights, autocast narrows float32 ones."""
    run = load(config, [f"plugin={plugin}", "dtype=bf16"], TrainRun).run
    timer, inputs = search.StepTimer(run, (5, 16, 16), select("cpu")), []
    assert {each.dtype for each in timer.model.parameters()} == {getattr(torch, dtype)}
    timer.model.register_forward_pre_hook(
        lambda _, arguments: inputs.append((arguments[0].dtype, torch.is_autocast_enabled("cpu")))
    )
    assert timer((5, 16, 16), 1) > 0
    assert set(inputs) == {(getattr(torch, dtype), dtype == "float32")}


def test_the_command_writes_a_config_that_loads(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Steps are really run; memory, a byte per clip, decides alone, so that no clock is asserted on."""
    timed: list[tuple[int, float]] = []
    time_step = search.StepTimer.__call__

    def watch(self: search.StepTimer, size: ClipSize, n: int) -> float:
        timed.append((n, time_step(self, size, n)))
        return timed[-1][1]

    monkeypatch.setattr(search.StepTimer, "__call__", watch)
    out = tmp_path / "new" / "tuned.py"
    run = load(config, [], TrainRun).run
    monkeypatch.setattr(search, "step_bytes", lambda run, world: lambda size, n: n)
    assert main([config, str(out), "step_seconds=1000", "memory_gb=3.5e-9"]) == 0
    tuned = load(str(out), [], TrainRun).run
    assert tuned.bucket_config == {"16x16": {5: (0.5, 3)}}
    assert (tuned.model, tuned.dataset) == (run.model, run.dataset)
    assert [n for n, _ in timed] == [1, 2, 3]
    assert all(0 < elapsed < 1000 for _, elapsed in timed)
    printed = capsys.readouterr()
    assert "at most 1000 s" in printed.out
    assert "note" in printed.out
    assert "16x16, 5 frames: batch 3, " in printed.err
    assert "(1 of 1 buckets)" in printed.err


def test_command_without_its_manifest_says_so(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(search.StepTimer, "__call__", lambda self, size, n: 1.0)
    monkeypatch.setattr(search, "step_bytes", lambda run, world: lambda size, n: n)
    data = "dataset={'_delete_': True, 'type': 'VideoTextDataset', 'data_path': 'nowhere.csv'}"
    assert main([config, str(tmp_path / "out.py"), "step_seconds=1000", "memory_gb=3e-9", data]) == 0
    assert "rows: not read, so a batch may be larger than the rows of its bucket allow (nowhere.csv: " in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["CONFIG", "out.py"], "key 'step_seconds': missing; allowed: a number above 0"),
        (["CONFIG", "out.py", "step_seconds=0"], "key 'step_seconds': found 0"),
        (["CONFIG", "out.txt", "step_seconds=1"], "OUT_CONFIG out.txt: allowed: another file than CONFIG"),
        (["CONFIG", "CONFIG", "step_seconds=1"], "allowed: another file than CONFIG"),
        (
            ["CONFIG", "out.py", "step_seconds=1", "bucket_config={'16x16': {5: (0, None)}}"],
            "every chance is 0, so no clip",
        ),
        (["CONFIG", "out.py", "step_seconds=1", "memory_gb=1e-6"], "not one clip of any bucket fits into 0.0 GB"),
        ([str(ROOT / "configs/stdit/train/debug.py"), "out.py", "step_seconds=1"], "set bucket_config"),
    ],
)
def test_impossible_search_is_error(
    config: str,
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([config if word == "CONFIG" else word for word in arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out.py").exists()


def test_written_config_keeps_command_line_changes(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes found with activation checkpointing fit with it only; and the file trains by itself."""
    monkeypatch.setattr(search.StepTimer, "__call__", lambda self, size, n: 1.0)
    monkeypatch.setattr(search, "step_bytes", lambda run, world: lambda size, n: n)
    out = tmp_path / "tuned.py"
    vae = build_autoencoder(load(config, [], TrainRun).run.vae)
    save_weights(tmp_path / "vae" / "weights" / "model", vae.state_dict(), vae.config)
    changes = [
        "grad_checkpoint=true",
        f"vae.from_pretrained={str(tmp_path / 'vae')!r}",
        "model.depth=1",
        "optimizer.lr=0.5",
        "validation_dataset={'type': 'MovingShapes', 'clips': 2}",
        "dataset.clips=24",
        "bucket_config={'16x32': {1: (1.0, 1)}}",
        f"run_dir={str(tmp_path / 'run')!r}",
        "steps=1",
        "save_every=0",
        "plugin=ddp",
    ]
    assert main([config, str(out), "step_seconds=1000", "memory_gb=2e-9", *changes]) == 0
    changed, tuned = load(config, changes, TrainRun).run, load(str(out), [], TrainRun).run
    assert tuned.bucket_config == {"16x16": {5: (0.5, 2)}, "16x32": {1: (1.0, 2)}}
    assert replace(tuned, bucket_config=None) == replace(changed, bucket_config=None)
    assert (tuned.grad_checkpoint, tuned.model["depth"]) == (True, 1)
    with one_rank() as world:
        training = build_training(tuned, world, str(out))
        assert train(training)
        training.metrics.close()


def test_buckets_from_the_command_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config without bucket_config has none to be replaced."""
    monkeypatch.setattr(search.StepTimer, "__call__", lambda self, size, n: 1.0)
    monkeypatch.setattr(search, "step_bytes", lambda run, world: lambda size, n: n)
    plain = str(ROOT / "configs/stdit2/train/debug.py")
    out = tmp_path / "tuned.py"
    buckets = "bucket_config={'16x16': {5: (1.0, 1)}}"
    assert main([plain, str(out), "step_seconds=9", "memory_gb=2e-9", buckets]) == 0
    assert load(str(out), [], TrainRun).run.bucket_config == {"16x16": {5: (1.0, 2)}}
