"""Batches: a function of (data set, seed, step), shared out over ranks, with bad rows passed over the same everywhere."""

import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from opensora.datasets.loader import build_loader
from opensora.datasets.row_report import Report
from opensora.datasets.sampler import EpochOrder, RankSchedule
from opensora.datasets.table import write_table
from opensora.datasets.video import VideoTextDataset
from opensora.errors import BadClip, ConfigError, DataError
from opensora.rng import Draw
from opensora.types import Batch, Clip
from tests.support.media_files import write_audio, write_manifest, write_video


@dataclass
class Numbers:
    """Row r is a clip of one pixel with value r; its caption is the draw. Rows in `bad` fail."""

    rows: int
    bad: set[int] = field(default_factory=set)
    bad_now: set[tuple[int, int, int]] = field(default_factory=set)  # (row, step, place): bad in places only
    where: str = "numbers.csv"
    num_frames: int = 1
    image_size: tuple[int, int] = (1, 1)
    fps: float = 8.0

    def __len__(self) -> int:
        return self.rows

    def clip(self, row: int, draw: Draw) -> Clip:
        if row in self.bad or (row, draw.step, draw.sample_id) in self.bad_now:
            raise BadClip(f"numbers.csv:{row + 2}: is bad")
        video = torch.full((3, 1, 1, 1), float(row))
        return Clip(video, f"{draw.seed} {draw.step} {draw.sample_id}", self.fps, row)

    def report(self) -> Report:
        return Report(self.where, self.rows, self.rows)


def stream(dataset: Numbers, ranks: int = 1, start_step: int = 0, workers: int = 0, seed: int = 3) -> list[list[Batch]]:
    """Batches per rank of 5 steps of 4 micro-batches of 3 samples."""
    return [
        list(
            build_loader(
                dataset,
                seed=seed,
                batch_size=3,
                micro_batches=4,
                data_rank=rank,
                data_size=ranks,
                start_step=start_step,
                steps=5,
                num_workers=workers,
            )
        )
        for rank in range(ranks)
    ]


def samples(per_rank: list[list[Batch]]) -> dict[tuple[int, int], tuple[int, str]]:
    """(step, place) -> (row, caption), over all ranks; no sample may come twice."""
    by_place: dict[tuple[int, int], tuple[int, str]] = {}
    for batch in (batch for batches in per_rank for batch in batches):
        for sample_id, row, caption, value in zip(
            batch.sample_ids, batch.rows, batch.captions, batch.video_BCTHW[:, 0, 0, 0, 0].tolist(), strict=True
        ):
            assert (batch.step, sample_id) not in by_place
            assert value == row
            by_place[batch.step, sample_id] = (row, caption)
    return by_place


@pytest.mark.parametrize(("rows", "bad"), [(1, set()), (5, set()), (5, {0, 3}), (12, {0}), (100, set()), (100, {7})])
def test_ranks_share_the_global_batch_exactly(rows: int, bad: set[int]) -> None:
    alone = samples(stream(Numbers(rows, bad)))
    assert sorted(alone) == [(step, sample_id) for step in range(5) for sample_id in range(12)]
    assert all(caption == f"3 {step} {sample_id}" for (step, sample_id), (_, caption) in alone.items())
    for ranks in (2, 4):
        shares = stream(Numbers(rows, bad), ranks)
        assert all(len(share) == 5 * 4 // ranks for share in shares)
        assert samples(shares) == alone


def test_micro_batches_are_dealt_in_turn() -> None:
    """Rank 1 of 2 makes micro-batches 1 and 3 of each step; sample numbers count over all steps."""
    share = RankSchedule(micro_batches=4, data_rank=1, data_size=2, start_step=5, steps=7)
    assert list(share) == [(5, 1), (5, 3), (6, 1), (6, 3)]
    order = EpochOrder(rows=20, seed=3, batch_size=2, micro_batches=4)
    request = order.request(5, 3)
    assert (request.step, request.sample_ids, request.size) == (5, [6, 7], None)
    assert request.candidates[:, 0].tolist() == [order.row(46), order.row(47)]
    assert request.candidates[0].tolist() == [order.row(46, skip) for skip in range(20)]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("start", [1, 3, 5])
def test_resume_gives_the_rest_of_the_stream(ranks: int, start: int) -> None:
    whole = samples(stream(Numbers(7, {2}), ranks=4))
    rest = samples(stream(Numbers(7, {2}), ranks, start_step=start))
    assert rest == {key: value for key, value in whole.items() if key[0] >= start}


def test_worker_processes_change_nothing() -> None:
    plain, with_workers = stream(Numbers(7, {2}))[0], stream(Numbers(7, {2}), workers=2)[0]
    assert [batch.sample_ids for batch in plain] == [batch.sample_ids for batch in with_workers]  # order too
    assert samples([plain]) == samples([with_workers])
    assert [message for batch in with_workers for message in batch.bad_rows] == ["numbers.csv:4: is bad"]


def test_every_epoch_takes_every_row_once_in_a_new_order() -> None:
    rows = [row for _, (row, _) in sorted(samples(stream(Numbers(10))).items())]
    epochs = [rows[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    other = [row for _, (row, _) in sorted(samples(stream(Numbers(10), seed=4)).items())]
    assert other != rows


def test_bad_row_is_replaced_by_next(caplog: pytest.LogCaptureFixture) -> None:
    order = EpochOrder(10, seed=3)
    good, with_bad = samples(stream(Numbers(10)))[0, 4], order.row(4)
    assert good[0] == with_bad
    with caplog.at_level(logging.WARNING, logger="opensora"):
        batches = stream(Numbers(10, {with_bad}))
    assert samples(batches)[0, 4][0] == order.row(5)
    assert samples(batches)[0, 5][0] == order.row(5)  # the others keep their rows
    bad_rows = [(batch.step, batch.sample_ids, batch.bad_rows) for batch in batches[0] if batch.bad_rows]
    assert bad_rows == [(0, [3, 4, 5], [f"numbers.csv:{with_bad + 2}: is bad"])]  # once, where it was met first
    assert [record.getMessage() for record in caplog.records] == [f"skipped numbers.csv:{with_bad + 2}: is bad"]


def test_row_bad_in_one_place_is_kept_elsewhere() -> None:
    """A memory of bad rows in one process would make the stream depend on which rank met them."""
    good = samples(stream(Numbers(4)))
    row = good[0, 0][0]
    for ranks in (1, 2):
        with_bad = samples(stream(Numbers(4, bad_now={(row, 0, 0)}), ranks))
        assert {key for key in good if good[key] != with_bad[key]} == {(0, 0)}


def test_all_rows_bad() -> None:
    with pytest.raises(DataError, match=r"numbers\.csv: all 3 rows.*numbers\.csv:\d: "):
        stream(Numbers(3, {0, 1, 2}))


def test_no_rows() -> None:
    with pytest.raises(DataError, match=r"numbers\.csv: .*row"):
        build_loader(Numbers(0), seed=0, batch_size=1, micro_batches=1, steps=1)


def test_uneven_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"micro_batches=4 .*3 data ranks"):
        stream(Numbers(3), ranks=3)
    with pytest.raises(ConfigError, match="batch_size=0"):
        EpochOrder(1, 0, batch_size=0)


def test_real_videos(tmp_path: Path) -> None:
    """The same bits with workers and without, over an epoch's end."""
    data = VideoTextDataset(write_manifest(tmp_path, clips=3), num_frames=4, image_size=(16, 16), crop="random")
    runs = [
        list(build_loader(data, seed=0, batch_size=2, micro_batches=2, steps=2, num_workers=workers))
        for workers in (0, 1)
    ]
    for plain, other in zip(*runs, strict=True):
        assert torch.equal(plain.video_BCTHW, other.video_BCTHW)
        assert plain.video_BCTHW.shape == (2, 3, 4, 16, 16)
        assert plain.captions == other.captions == [f"clip number {row}" for row in plain.rows]
        assert plain.fps_B.tolist() == [8.0, 8.0]
        assert not plain.bad_rows


def test_bad_files_are_skipped_and_reported_with_line(tmp_path: Path) -> None:
    """Eight rows, three of them good; one rank, two ranks and workers see the same samples."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("a caption, not a video\n")
    cut_off = tmp_path / "cut_off.mp4"
    cut_off.write_bytes(Path(write_video(cut_off, 30)).read_bytes()[:600])
    write_audio(tmp_path / "audio.mp4")
    write_video(tmp_path / "one.mp4", 1)
    bad = {
        "empty": "0 bytes",
        "text": "text file",
        "cut_off": "truncated",
        "audio": "audio only",
        "one": "has 1 frame, 4",
    }
    good = [write_video(tmp_path / f"good{i}.mp4", 8) for i in range(3)]
    paths = [path for pair in zip(good, (f"{name}.mp4" for name in bad)) for path in pair] + ["audio.mp4", "one.mp4"]
    write_table(str(tmp_path / "train.csv"), [{"path": path, "text": path} for path in paths])
    data = VideoTextDataset(str(tmp_path / "train.csv"), num_frames=4, image_size=(8, 16))

    def run(ranks: int, workers: int = 0) -> tuple[dict[tuple[int, int], tuple[int, torch.Tensor]], set[str]]:
        clips, messages = {}, []
        for rank in range(ranks):
            share = {"data_rank": rank, "data_size": ranks, "num_workers": workers}
            for batch in build_loader(data, seed=0, batch_size=2, micro_batches=2, steps=4, **share):
                messages += batch.bad_rows
                for sample_id, row, video in zip(batch.sample_ids, batch.rows, batch.video_BCTHW, strict=True):
                    clips[batch.step, sample_id] = row, video
        assert ranks > 1 or len(messages) == len(set(messages))
        return clips, set(messages)

    alone, messages = run(ranks=1)
    assert {row for row, _ in alone.values()} == {0, 2, 4}
    assert len(messages) == 5
    for message in messages:
        [name] = [name for name in bad if f"{name}.mp4" in message]
        line = 2 + paths.index(f"{name}.mp4")
        assert message.startswith(f"{tmp_path}/train.csv:{line}: ")
        assert bad[name] in message
    for ranks, workers in ((2, 0), (1, 2)):
        clips, same_messages = run(ranks, workers)
        assert same_messages == messages
        assert all(row == alone[key][0] and torch.equal(video, alone[key][1]) for key, (row, video) in clips.items())
        assert clips.keys() == alone.keys()


def worker_at_work() -> tuple[Iterator[Batch], BaseProcess]:
    """Batches of 40 steps, the first one taken, and the process that loads them."""
    before = set(multiprocessing.active_children())
    batches = build_loader(Numbers(40), seed=3, batch_size=1, micro_batches=1, steps=40, num_workers=1)
    assert next(batches).step == 0
    [worker] = set(multiprocessing.active_children()) - before
    return batches, worker


def test_worker_ignores_sigterm_of_other_processes() -> None:
    """torchrun and Slurm send SIGTERM to all processes of a rank, which needs its workers to finish the step."""
    batches, worker = worker_at_work()
    other = f"import os, signal; os.kill({worker.pid}, signal.SIGTERM)"  # from another process than ours
    subprocess.run([sys.executable, "-c", other], check=True)
    assert [batch.step for batch in batches] == list(range(1, 40))
    batches, worker = worker_at_work()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_all_rows_bad_is_same_error_from_workers() -> None:
    with pytest.raises(DataError, match=r"^numbers\.csv: all 3 rows.*numbers\.csv:\d: "):
        stream(Numbers(3, {0, 1, 2}), workers=1)
