"""Frames that stand for a part of a video."""

from pathlib import Path

import pytest

from opensora.datasets.decode import Video
from opensora.datasets.sampled_frames import sampled_frames, spread, spread_runs
from tests.support.media_files import frame_number, write_video


def test_spread_takes_the_middles() -> None:
    assert spread(0, 100, 4) == [12, 37, 62, 87]
    assert spread(10, 13, 4) == [10, 11, 12]
    assert spread(5, 6, 1) == [5]


def test_runs() -> None:
    assert spread_runs(0, 100, 2, 3, 5) == [[0, 2, 4, 6, 8], [46, 48, 50, 52, 54], [91, 93, 95, 97, 99]]
    assert spread_runs(0, 100, 2, 1, 5) == [[46, 48, 50, 52, 54]]
    assert spread_runs(3, 9, 2, 3, 5) == [[3, 5, 7]]
    assert spread_runs(3, 4, 1, 3, 5) == [[3]]


def test_far_frames_are_reached_by_seeking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, groups = write_video(tmp_path / "a.mp4", 120), []
    frames = Video.frames
    monkeypatch.setattr(
        Video, "frames", lambda self, indices, widest: (groups.append(indices), frames(self, indices, widest))[1]
    )
    monkeypatch.setattr("opensora.datasets.sampled_frames._DECODE_ON", 20)
    with Video(path) as video:
        wanted = [3, 4, 24, 90, 110]
        assert [frame_number(frame) for frame in sampled_frames(video, wanted)] == wanted
        assert list(sampled_frames(video, [])) == []
    assert groups == [[3, 4, 24], [90, 110]]


def test_large_frames_come_shrunken(tmp_path: Path) -> None:
    for size, shown in (((64, 96), (32, 48)), ((96, 64), (48, 32)), ((24, 96), (24, 96))):
        with Video(write_video(tmp_path / "a.mp4", 3, size=size)) as video:
            assert [frame.shape[:2] for frame in sampled_frames(video, [0, 2], 32)] == [shown] * 2
