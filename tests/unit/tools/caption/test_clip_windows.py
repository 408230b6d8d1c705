from pathlib import Path

import numpy as np
import pytest

from opensora.errors import BadClip
from tests.support.media_files import frame_number, write_video
from tools.caption.clip_windows import GRID_GAP, bounds, clip_windows, grid, shrink, window_bounds


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 frames of their own numbers at 8 frames per second."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 24)


def numbers(row: dict[str, object], frames: int, **settings: object) -> list[list[int]]:
    """The numbers of the frames of each window."""
    windows = clip_windows(row, frames, **settings)  # type: ignore[arg-type]
    return [[frame_number(frame) for frame in window.frames] for window in windows]


def test_middles_of_equal_parts(clip: str) -> None:
    assert numbers({"path": clip}, 4) == [[3, 9, 15, 21]]
    assert numbers({"path": clip}, 1) == [[12]]
    assert numbers({"path": clip, "start_frame": 3, "end_frame": 6}, 8) == [[3, 4, 5]]
    assert numbers({"path": clip, "start_frame": 3, "end_frame": 4}, 8) == [[3]]


def test_windows_and_their_times(clip: str) -> None:
    windows = clip_windows({"path": clip}, 2, window_seconds=1.0)
    assert [(window.start, window.end) for window in windows] == [(0, 1), (1, 2), (2, 3)]
    assert [window.fps for window in windows] == [2, 2, 2]
    assert numbers({"path": clip}, 2, window_seconds=1.0) == [[2, 6], [10, 14], [18, 22]]
    assert numbers({"path": clip}, 2, window_seconds=1.0, overlap=True) == [[2, 6], [6, 10, 14], [14, 18, 22]]
    assert numbers({"path": clip}, 1, window_seconds=0.01, most_windows=3) == [[4], [12], [20]]


def test_window_bounds_cover_the_clip_once() -> None:
    assert window_bounds(0, 24, 8, None, 16) == [(0, 24)]
    assert window_bounds(4, 14, 8, 0.5, 16) == [(4, 9), (9, 14)]  # 1.25 s: two windows of 5 frames
    assert window_bounds(0, 2, 8, 0.01, 16) == [(0, 1), (1, 2)]
    assert window_bounds(0, 2, 8, 100, 16) == [(0, 2)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, (0, 24)),
        ({"start_frame": 4, "end_frame": 8, "start": 0, "end": 1}, (4, 8)),
        ({"start": "1.0", "end": 2.0}, (8, 16)),
        ({"start": 1.0, "end": None}, (8, 24)),
        ({"end": 99}, (0, 24)),
        ({"start_frame": "", "end_frame": float("nan")}, (0, 24)),
    ],
)
def test_bounds(row: dict[str, object], expected: tuple[int, int]) -> None:
    assert bounds({"path": "clip.mp4", **row}, 24, 8) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"start_frame": 8, "end_frame": 8}, "start_frame is 8 and end_frame 8; the file has 24 frames"),
        ({"start_frame": 8, "end_frame": 25}, "start_frame is 8 and end_frame 25; the file has 24 frames"),
        ({"start": 3.0}, "from frame 24 to 24 of 24; at least one frame is needed; correct start and end"),
        ({"start": -1}, "from frame -8"),
        ({"start": "soon"}, "start is 'soon'; a number is needed"),
        ({"end": float("inf")}, "end is inf; a number is needed"),
    ],
)
def test_bounds_that_are_refused(row: dict[str, object], expected: str) -> None:
    with pytest.raises(BadClip, match=expected):
        bounds({"path": "clip.mp4", **row}, 24, 8)


def test_scene_of_a_film(clip: str) -> None:
    assert numbers({"path": clip, "start_frame": 6, "end_frame": 10}, 2) == [[7, 9]]


def test_shrink_keeps_the_aspect_ratio(clip: str) -> None:
    frame = np.zeros((30, 90, 3), np.uint8)
    assert shrink(frame, 45).shape == (15, 45, 3)
    assert shrink(frame, 0) is frame
    assert shrink(frame, 90) is frame
    assert clip_windows({"path": clip}, 1, max_side=32)[0].frames.shape == (1, 16, 32, 3)


def test_grid_is_read_row_by_row() -> None:
    frames = np.stack([np.full((10, 20, 3), shade, np.uint8) for shade in (10, 20, 30)])
    page = grid(frames)
    assert page.shape == (3 * 10 + 2 * GRID_GAP, 20, 3) or page.shape == (2 * 10 + GRID_GAP, 2 * 20 + GRID_GAP, 3)
    square = grid(np.stack([np.full((10, 10, 3), shade, np.uint8) for shade in (10, 20, 30)]))
    assert square.shape == (2 * 10 + GRID_GAP, 2 * 10 + GRID_GAP, 3)
    assert [square[5, 5, 0], square[5, 19, 0], square[19, 5, 0], square[19, 19, 0]] == [10, 20, 30, 255]
    assert grid(frames[:1]).shape == (10, 20, 3)


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(BadClip):
        clip_windows({"path": str(tmp_path / "a.mp4")}, 4)
