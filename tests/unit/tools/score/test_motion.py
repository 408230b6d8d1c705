"""The amount of motion, in units that depend neither on size nor on frame rate."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from opensora.errors import BadClip, ConfigError
from tests.support.camera_clips import pictures, render
from tests.support.media_files import write_picture, write_video
from tools.score.motion import motion

Clip = list[NDArray[np.uint8]]


def panned(speed: float, fps: int = 24, size: tuple[int, int] = (64, 64), wobble: float = 0.0) -> Clip:
    """One second of a camera that goes to the right, in shorter sides per second, and up and down by `wobble` of one."""
    poses = np.zeros((fps, 4))
    poses[:, 0], poses[:, 2] = speed * np.arange(fps) / fps, 1
    poses[:, 1] = wobble * np.sin(2 * np.pi * 5 * np.arange(fps) / fps)
    return render(pictures()[1], poses, *size, np.random.default_rng(2))


def written(folder: Path, frames: Clip, fps: int = 24) -> str:
    return write_video(folder / "a.mp4", frames, fps=fps, codec_options={"crf": "12"})


@pytest.mark.parametrize(("fps", "size"), [(8, (64, 64)), (60, (64, 64)), (24, (160, 200))])
def test_flow_is_the_speed_of_a_pan(tmp_path: Path, fps: int, size: tuple[int, int]) -> None:
    row = motion({"path": written(tmp_path, panned(0.3, fps, size), fps), "text": "kept"})
    assert row["flow"] == pytest.approx(30, rel=0.1)
    assert row["static_share"] < 0.1
    assert row["jitter"] < 4
    assert row["text"] == "kept"


def test_a_still_clip_rests(tmp_path: Path) -> None:
    row = motion({"path": written(tmp_path, panned(0))})
    assert row["flow"] < 0.5
    assert row["static_share"] > 0.95
    assert row["jitter"] < 0.5


def test_jitter_is_of_a_shaking_camera(tmp_path: Path) -> None:
    """Its movement up and down by 2 percent, 5 times a second, changes by up to 63 percent per second each way."""
    row = motion({"path": written(tmp_path, panned(0.3, wobble=0.02))})
    assert 20 < row["jitter"] < 130


def test_static_share_is_the_part_that_rests(tmp_path: Path) -> None:
    """The right half pans, the left one is a photograph."""
    frames = panned(0.4, size=(64, 128))
    for frame in frames:
        frame[:, :64] = pictures()[0][100:164, 100:164]
    assert motion({"path": written(tmp_path, frames)})["static_share"] == pytest.approx(0.5, abs=0.1)


def test_bad_clips_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match="has one frame; motion needs at least two"):
        motion({"path": write_picture(tmp_path / "a.png")})
    (tmp_path / "b.mp4").write_bytes(b"")
    with pytest.raises(BadClip, match=r"b\.mp4"):
        motion({"path": str(tmp_path / "b.mp4")})
    with pytest.raises(ConfigError, match="--runs 0; at least 1"):
        motion({"path": str(tmp_path / "b.mp4")}, runs=0)
