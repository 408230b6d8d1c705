"""Shots are found where a video changes."""

from pathlib import Path

import numpy as np

from tests.support.media_files import write_video
from tools.datasets.videos import demo_videos
from tools.scene_cut.detect import detect, scenes

BIKES_CUTS = [30, 76, 137, 187, 242]


def color_video(path: Path, *lengths: int) -> str:
    """Shots of plain colors, of these lengths in frames, 8 frames per second."""
    colors = ([220, 30, 30], [30, 30, 220], [30, 200, 30])
    frames = [np.full((32, 64, 3), colors[i % 3], np.uint8) for i, n in enumerate(lengths) for _ in range(n)]
    return write_video(path, frames)


def test_detect_finds_every_cut_and_no_more(tmp_path: Path) -> None:
    rows = list(detect({"path": color_video(tmp_path / "a.mp4", 10, 7, 9), "text": "kept"}))
    assert [(row["start_frame"], row["end_frame"]) for row in rows] == [(0, 10), (10, 17), (17, 26)]
    assert [(row["start"], row["end"]) for row in rows] == [(0, 1.25), (1.25, 2.125), (2.125, 3.25)]
    assert [row["shot"] for row in rows] == [0, 1, 2]
    assert {row["text"] for row in rows} == {"kept"}
    assert {(row["num_frames"], row["fps"], row["height"], row["width"]) for row in rows} == {(26, 8.0, 32, 64)}


def test_short_scenes_join_the_one_before() -> None:
    assert scenes([10, 12, 20], 30, 5) == [(0, 12), (12, 20), (20, 30)]
    assert scenes([2, 10], 30, 5) == [(0, 10), (10, 30)]  # the first has none before it
    assert scenes([10, 28], 30, 5) == [(0, 10), (10, 30)]
    assert scenes([], 30, 5) == [(0, 30)]
    assert scenes([10, 28], 30, 0) == [(0, 10), (10, 28), (28, 30)]


def test_real_footage() -> None:
    """bikes.mp4 has six shots, the last one a third of a second long."""
    rows = list(detect({"path": demo_videos()[0]}))
    assert [row["start_frame"] for row in rows] == [0, *BIKES_CUTS]
    assert rows[-1]["end_frame"] == 250
