"""Frames of a clip, which may be a part of its file."""

from pathlib import Path
from typing import Any

import pytest

from opensora.errors import BadClip
from tests.support.media_files import frame_number, write_video
from tools.clip_frames import clip_part, sample_frames, spread


def test_a_row_without_bounds_is_the_whole_file() -> None:
    for row in ({}, {"start_frame": "", "end_frame": ""}, {"start_frame": None}, {"start_frame": 3}):
        assert clip_part({"path": "a", **row}, 12) == range(12)
    assert clip_part({"path": "a", "start_frame": "3", "end_frame": 5.0}, 12) == range(3, 5)


@pytest.mark.parametrize(("start", "end"), [(5, 5), (-1, 5), (0, 13), ("a", 5)])
def test_wrong_bounds_are_a_bad_clip(start: Any, end: Any) -> None:
    with pytest.raises(BadClip, match=r"^a: start_frame (is|and end_frame are)"):
        clip_part({"path": "a", "start_frame": start, "end_frame": end}, 12)


def test_frames_are_the_middles_of_equal_pieces() -> None:
    assert spread(range(100), 4) == [12, 37, 62, 87]
    assert spread(range(50, 150), 4) == [62, 87, 112, 137]
    assert spread(range(2), 4) == [0, 0, 1, 1]
    assert spread(range(1), 3) == [0, 0, 0]


def test_samples_are_different_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 12)
    assert [frame_number(frame) for frame in sample_frames({"path": path}, 3)] == [2, 6, 10]
    assert [frame_number(frame) for frame in sample_frames({"path": path, "start_frame": 4, "end_frame": 6}, 8)] == [
        4,
        5,
    ]
    assert [frame.shape for frame in sample_frames({"path": path}, 1, widest=32)] == [(16, 32, 3)]
