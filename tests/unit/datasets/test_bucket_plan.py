"""Steps by buckets: a function of (rows, config, seed, step), each of one bucket, and nothing lost without a count."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from opensora.datasets import bucket_plan
from opensora.datasets.base import ClipSize
from opensora.datasets.bucket_plan import CHANCE, TOO_SHORT, TOO_SMALL, UNSIZED, BucketOrder
from opensora.datasets.bucket_report import NOT_FULL, OVER_RATIO
from opensora.datasets.buckets import Buckets
from opensora.datasets.clip_sizes import NO_FRAMES, ClipSizes
from opensora.datasets.loader import build_loader
from opensora.datasets.row_report import Dropped, Report
from opensora.errors import BadClip, ConfigError, DataError
from opensora.rng import Draw
from opensora.types import Batch, Clip

# a picture or a clip of 4 frames, large or small; large clips stay large half of the time
CONFIG: dict[str, Any] = {"8x16": {1: (0.5, 4), 4: (0.5, 1)}, "8x8": {1: (1.0, 3), 4: (1.0, 2)}}
CERTAIN: dict[str, Any] = {"8x16": {4: (1.0, 1)}, "8x8": {1: (1.0, 3), 4: (1.0, 2)}}


@dataclass
class Shapes:
    """Row r has (frames, height, width) `rows[r]`; its clip is filled with r."""

    rows: list[tuple[int, int, int]]
    bad: set[int] = field(default_factory=set)
    where: str = "shapes.csv"
    num_frames: int = 0
    image_size: tuple[int, int] = (0, 0)
    frame_interval: int = 1
    fps: float = 8.0

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self) -> ClipSizes:
        frames, height, width = np.array(self.rows, dtype=np.int32).reshape(-1, 3).T
        return ClipSizes(
            2 * np.arange(len(self.rows)) + 7, frames, height, width
        )  # some rows of the manifest are not used

    def clip(self, row: int, draw: Draw, size: ClipSize | None = None) -> Clip:
        assert size is not None
        if row in self.bad:
            raise BadClip(f"shapes.csv:{row + 2}: is bad")
        return Clip(torch.full((3, *size), float(row)), f"{draw.step} {draw.sample_id}", self.fps, row)

    def report(self) -> Report:
        return Report(self.where, len(self.rows), len(self.rows))


def mixed(count: int = 60) -> Shapes:
    kinds = [(1, 8, 16), (6, 8, 16), (1, 8, 8), (6, 8, 8), (30, 10, 20)]
    return Shapes([kinds[n % len(kinds)] for n in range(count)])


def order(dataset: Shapes, config: Any = CONFIG, seed: int = 3, micro_batches: int = 2, **keys: Any) -> BucketOrder:
    return BucketOrder(dataset, Buckets(config), seed=seed, micro_batches=micro_batches, **keys)


def batches(
    dataset: Shapes, steps: int = 12, ranks: int = 1, start: int = 0, workers: int = 0, **keys: Any
) -> list[Batch]:
    """All ranks' micro-batches; 4 in a step."""
    result = []
    for rank in range(ranks):
        plan = order(dataset, micro_batches=4, **keys)  # each rank plans for itself
        result += build_loader(
            dataset, seed=3, batch_size=1, micro_batches=4, data_rank=rank, data_size=ranks, start_step=start,
            steps=steps, num_workers=workers, order=plan,
        )  # fmt: skip
    return result


def samples(micro_batches: list[Batch]) -> dict[tuple[int, int], Any]:
    """(step, place) -> (row, size, caption)."""
    by_place: dict[tuple[int, int], Any] = {}
    for batch in micro_batches:
        size = tuple(batch.video_BCTHW.shape[2:])
        for sample_id, row, caption, video in zip(
            batch.sample_ids, batch.rows, batch.captions, batch.video_BCTHW, strict=True
        ):
            assert (batch.step, sample_id) not in by_place
            assert video.unique().item() == row
            by_place[batch.step, sample_id] = (row, size, caption)
    return by_place


def test_a_step_is_of_one_bucket_and_full() -> None:
    dataset = mixed(200)
    buckets = Buckets(CONFIG)
    clips = {buckets.size(b): 4 * buckets.batch_size(b) for b in buckets.all}
    alone = samples(batches(dataset, steps=20))
    sizes_used = set()
    for step in range(20):
        sample_ids = sorted(sample_id for s, sample_id in alone if s == step)
        sizes = {alone[step, sample_id][1] for sample_id in sample_ids}
        assert len(sizes) == 1
        [size] = sizes
        sizes_used.add(size)
        assert sample_ids == list(range(clips[size]))
        assert all(alone[step, sample_id][2] == f"{step} {sample_id}" for sample_id in sample_ids)
    assert sizes_used == set(clips)


@pytest.mark.parametrize("config", [CONFIG, CERTAIN], ids=["chance", "certain"])
@pytest.mark.parametrize("image_ratio", [None, 0.4])
def test_ranks_resume_and_workers_change_nothing(config: Any, image_ratio: float | None) -> None:
    """Twelve steps are several epochs; 1, 2 or 4 ranks from any step on take the same rows at the same sizes."""
    keys = {"config": config, "image_ratio": image_ratio}
    whole = samples(batches(mixed(), **keys))
    assert len({step for step, _ in whole}) == 12
    for ranks, start in ((2, 0), (4, 5), (1, 7), (2, 11)):
        rest = samples(batches(mixed(), ranks=ranks, start=start, **keys))
        assert rest == {key: value for key, value in whole.items() if key[0] >= start}
    assert samples(batches(mixed(), workers=2, **keys)) == whole


def test_epoch_takes_row_once_and_counts_rest() -> None:
    dataset = mixed(61)
    plan = order(dataset)
    for number in range(3):
        epoch, chosen = plan.epoch(number), plan.choices(number)
        begin = sum(len(plan.epoch(n)) for n in range(number))
        row_buckets = [
            (int(row), int(epoch.step_bucket[step]))
            for step in range(len(epoch))
            for micro in range(2)
            for row in plan.request(begin + step, micro).candidates[:, 0]
        ]
        rows = [row for row, _ in row_buckets]
        assert len(rows) == len(set(rows)) > 30
        assert all(chosen[row] == bucket for row, bucket in row_buckets)
        for bucket in set(chosen.tolist()) - {-1}:
            left = np.count_nonzero(chosen == bucket) - sum(b == bucket for _, b in row_buckets)
            assert 0 <= left < 2 * plan.batch_sizes[bucket]
    assert [plan.locate(step)[0] for step in (0, len(plan.epoch(0)) - 1, len(plan.epoch(0)))] == [0, 0, 1]


def test_orders_differ_by_epoch_and_seed() -> None:
    plan, other = order(mixed(), CERTAIN), order(mixed(), CERTAIN, seed=4)
    first, second, third = plan.epoch(0), plan.epoch(1), other.epoch(0)
    for epoch in (second, third):
        assert len(epoch) == len(first)
        assert sorted(epoch.step_bucket.tolist()) == sorted(first.step_bucket.tolist())
        assert epoch.step_bucket.tolist() != first.step_bucket.tolist()
        assert epoch.rows.tolist() != first.rows.tolist()
        assert sorted(epoch.rows.tolist()) == sorted(first.rows.tolist())


def test_choices_depend_on_row_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open-Sora's seed of a row, whatever block it is planned in; a row without a size goes nowhere."""
    monkeypatch.setattr(bucket_plan, "_BLOCK", 7)
    dataset = mixed(40)
    dataset.rows[9] = (0, 8, 8)
    plan, buckets = order(dataset, seed=11), Buckets(CONFIG)
    for epoch in (0, 5):
        for row, number in enumerate(plan.choices(epoch)):
            expected = (
                buckets.choose(*dataset.rows[row], seed=buckets.row_seed(11, epoch, 2 * row + 7)) if row != 9 else None
            )
            assert (None if number < 0 else buckets.all[number]) == expected


def test_bad_rows_are_replaced_within_the_bucket() -> None:
    good = samples(batches(mixed()))
    row = good[0, 0][0]
    dataset = mixed()
    dataset.bad = {row}
    replaced = batches(dataset)
    assert samples(replaced)[0, 0][1] == good[0, 0][1]
    assert samples(replaced)[0, 0][0] == order(mixed(), micro_batches=4).request(0, 0).candidates[0, 1] != row
    assert {key for key, value in samples(replaced).items() if value != good[key]} == {
        key for key, value in good.items() if value[0] == row
    }
    assert [message for batch in replaced for message in batch.bad_rows] == [f"shapes.csv:{row + 2}: is bad"]
    assert samples(batches(dataset, ranks=4)) == samples(replaced)


def test_report_counts_every_row() -> None:
    """Ten rows each: too short, without a size, too small, and such as fit; a chance of 0 takes nothing."""
    kinds = [(3, 8, 8), (6, 8, 0), (6, 4, 4), (6, 8, 8), (1, 8, 8), (6, 8, 16)]
    dataset = Shapes([kind for kind in kinds for _ in range(10)])
    config = {"8x16": {1: (0.0, None), 4: (0.5, 2)}, "8x8": {4: (0.5, 3)}}
    plan = order(dataset, config, micro_batches=2)
    report = plan.report()
    chosen = plan.choices(0)
    large, small = (int((chosen == n).sum()) for n in (0, 2))
    assert (report.rows, report.steps) == (60, large // 4 + small // 6)
    assert [(line.size, line.batch_size, line.rows, line.steps) for line in report.lines_by_bucket] == [
        ((4, 8, 16), 2, large, large // 4),
        ((4, 8, 8), 3, small, small // 6),
    ]
    assert report.dropped == {
        UNSIZED: 10,
        TOO_SHORT: 20,
        TOO_SMALL: 10,
        CHANCE: 20 - large - small,
        NOT_FULL: large % 4 + small % 6,
    }
    assert report.kept + sum(report.dropped.values()) == report.rows
    steps = {(4, 8, 16): large // 4, (4, 8, 8): small // 6}  # the larger micro-batch first
    assert [line.size for line in report.trained] == [size for size, count in steps.items() if count]
    assert f"8x16 0.50: 4x8x16, batch 2: {large} rows, {large // 4} steps" in "\n".join(report.lines())


def test_buckets_without_a_row_say_why() -> None:
    rows = [(6, 8, 8)] * 12 + [(20, 8, 16)] * 12
    config = {
        "16x16": {4: (1.0, 1)},
        "8x16": {1: (1.0, 4), 40: (1.0, 1), 9: (1.0, 1), 4: (1.0, 1), 3: (0.0, None)},
        "8x8": {5: (1.0, 2)},
    }
    report = order(Shapes(rows), config).report()
    assert {(each.resolution, each.num_frames): each.why for each in report.empty} == {
        ("16x16", 4): "every row that is long enough is too small",
        ("8x16", 40): "no row has more than 40 frames",
        ("8x16", 4): "longer or larger buckets take its rows",
        ("8x16", 3): "its chance is 0",
        ("8x16", 1): "there are no pictures",
    }
    assert "  8x16, 4 frames: 0 rows, longer or larger buckets take its rows" in report.lines()
    pictures = order(Shapes([(1, 8, 16)] * 8), {"16x16": {1: (1.0, 1)}, "8x16": {1: (1.0, 1)}, "8x8": {1: (1.0, 1)}})
    assert [each.why for each in pictures.report().empty] == [
        "every picture is too small", "larger buckets take every picture"
    ]  # fmt: skip


def test_table_names_buckets_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """One resolution and ratio at two lengths."""
    report = order(
        Shapes([(6, 8, 16)] * 8 + [(20, 8, 16)] * 8), {"8x16": {9: (1.0, 1), 4: (1.0, 1), 2: (1.0, 1)}}
    ).report()
    Console(width=120).print(report.table())
    names = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "8x16" in line]
    assert names == ["8x16 0.50, 9 frames", "8x16 0.50, 4 frames", "8x16, 2 frames"]


@pytest.mark.parametrize(
    ("ratio", "images", "videos"), [(None, 4, 16), (0.5, 4, 4), (0.1, 2, 16), (0.0, 0, 16), (1.0, 4, 0)]
)
def test_share_of_image_steps(ratio: float | None, images: int, videos: int) -> None:
    dataset = Shapes([(1, 8, 8)] * 25 + [(6, 8, 8)] * 65)
    plan = order(dataset, {"8x8": {1: (1.0, 3), 4: (1.0, 2)}}, image_ratio=ratio)
    for number in range(2):
        epoch = plan.epoch(number)
        assert sorted(Counter(plan.size(b)[0] for b in epoch.step_bucket).items()) == [
            (frames, count) for frames, count in ((1, images), (4, videos)) if count
        ]
    if ratio is not None:
        report = plan.report()
        assert report.steps == images + videos
        assert report.dropped[OVER_RATIO] == (4 - images) * 6 + (16 - videos) * 4
        assert report.kept + sum(report.dropped.values()) == 90


def test_steps_of_later_epochs_are_counted_without_planning_them() -> None:
    plan = order(mixed(), image_ratio=0.3)
    assert [plan.step_count(number) for number in range(6)] == [len(plan.epoch(number)) for number in range(6)]


def test_empty_plan_is_error() -> None:
    with pytest.raises(DataError, match=r"shapes\.csv: .* 3 rows \(smaller than"):
        order(Shapes([(6, 4, 4)] * 3)).report()
    with pytest.raises(DataError, match=r" 3 rows .*bucket: 3"):
        order(Shapes([(6, 8, 8)] * 3), CERTAIN).report()
    for chance in (0.5, 1.0):
        with pytest.raises(DataError, match="100 epochs"):
            order(Shapes([(6, 8, 8)] * 3), {"8x8": {4: (chance, 2)}}).locate(0)


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"'seed'.*-1"):
        order(mixed(), seed=-1)
    with pytest.raises(ConfigError, match=r"'seed'.*9223372036854775808.*allowed"):
        order(mixed(), seed=2**63)
    with pytest.raises(ConfigError, match=r"'image_ratio'.*1\.5"):
        order(mixed(), image_ratio=1.5)


def test_row_without_frames_is_too_short() -> None:
    """Its start lies behind the end: the manifest has all sizes, so it must not be blamed."""
    report = order(Shapes([(NO_FRAMES, 8, 8)] * 2 + [(0, 8, 8)] + [(6, 8, 8)] * 4), CERTAIN).report()
    assert (report.dropped[TOO_SHORT], report.dropped[UNSIZED]) == (2, 1)


def test_log_names_rows_dropped_by_manifest() -> None:
    dataset = mixed()
    messages = [f"shapes.csv:{line}: the caption is empty" for line in range(2, 7)]
    dataset.report = lambda: Report.of("shapes.csv", 60, [Dropped("empty caption", each) for each in messages])  # type: ignore[method-assign]
    lines = order(dataset).report().lines()
    place = lines.index("  dropped, empty caption: 5")
    assert lines[place + 1 : place + 5] == [f"    {each}" for each in messages[:3]] + ["    ... and 2 more"]
