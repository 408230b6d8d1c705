"""The movement of the camera has its right name, on clips cut out of photographs with a known movement.

`python -m tests.unit.tools.score.test_camera SEED...` prints the confusion table of other clips.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from opensora.errors import BadClip, ConfigError
from tests.support.camera_clips import CameraClip, measured_clips, pictures, render
from tests.support.media_files import write_picture, write_video
from tools.score.camera import camera, measure

SEED = 0


def frames_read(frames: list[NDArray[np.uint8]]) -> object:
    return lambda indices: (frames[index] for index in indices)


def confusion(named: Iterable[tuple[CameraClip, str]]) -> str:
    """A row per movement, a column per name, and the names of the clips with a wrong one."""
    named = list(named)
    counts = Counter((clip.motion, kind) for clip, kind in named)
    kinds = list(dict.fromkeys([clip.motion for clip, _ in named] + sorted(kind for _, kind in named)))
    lines = [" " * 12 + "".join(f"{kind:>11}" for kind in kinds)]
    for motion in dict.fromkeys(clip.motion for clip, _ in named):
        lines.append(f"{motion:12}" + "".join(f"{counts[motion, kind] or '.':>11}" for kind in kinds))
    wrong = [f"{clip.name} {clip.fps} fps crf {clip.crf}: {kind}" for clip, kind in named if kind != clip.motion]
    return "\n".join([*lines, f"right: {len(named) - len(wrong)} of {len(named)}", *wrong])


def test_sixty_clips_have_the_right_name() -> None:
    named = [(clip, str(row["cmotion"])) for clip, row in measured_clips(SEED)]
    table = confusion(named)
    print(table)
    assert len(named) == 60
    assert sum(kind == clip.motion for clip, kind in named) >= 57, table


def still(seconds: float = 1.0, height: int = 96, width: int = 144) -> list[NDArray[np.uint8]]:
    """A resting camera in front of a photograph."""
    poses = np.tile([0.0, 0.0, 1.0, 0.0], (round(24 * seconds), 1))
    return render(pictures()[0], poses, height, width, np.random.default_rng(1))


def panned(
    speed: float, *, fps: int = 24, seconds: float = 1.0, size: tuple[int, int] = (96, 96)
) -> list[NDArray[np.uint8]]:
    """The camera goes to the right by `speed` shorter sides per second."""
    poses = np.zeros((round(fps * seconds), 4))
    poses[:, 0], poses[:, 2] = speed * np.arange(len(poses)) / fps, 1
    return render(pictures()[1], poses, *size, np.random.default_rng(2))


def label(frames: list[NDArray[np.uint8]], fps: int = 24) -> str | None:
    motion = measure(frames_read(frames), 0, len(frames), fps, 6)
    return None if motion is None else motion.kind


@pytest.mark.parametrize(("fps", "size"), [(8, (96, 96)), (60, (96, 96)), (24, (48, 64)), (24, (200, 300))])
def test_rates_depend_neither_on_size_nor_on_frame_rate(fps: int, size: tuple[int, int]) -> None:
    frames = panned(0.25, fps=fps, size=size)
    motion = measure(frames_read(frames), 0, len(frames), fps, 6)
    assert motion is not None
    assert motion.kind == "pan_right"
    assert motion.pan == pytest.approx(25, rel=0.05)
    assert abs(motion.tilt) < 1
    assert abs(motion.roll) < 1


def test_rates_of_zoom_and_roll() -> None:
    time = np.arange(24) / 24
    poses = np.zeros((24, 4))
    poses[:, 2], poses[:, 3] = np.exp(-0.2 * time), np.radians(10) * time
    frames = render(pictures()[1], poses, 96, 96, np.random.default_rng(3))
    motion = measure(frames_read(frames), 0, 24, 24, 6)
    assert motion is not None
    assert motion.zoom == pytest.approx(20, rel=0.1)
    assert motion.roll == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("side", [20, 40, 60])
def test_a_moving_object_does_not_fool(side: int) -> None:
    """A part of another photograph crosses the frame of 96 pixels; the camera rests, or pans against it."""
    thing = pictures()[3][:side, :side]
    for frames, expected in ((still(), "static"), (panned(0.25, size=(96, 144)), "pan_right")):
        for number, frame in enumerate(frames):
            left = 5 + number * (144 - side - 10) // len(frames)
            frame[10 : 10 + side, left : left + side] = thing
        assert label(frames) == expected


def test_where_no_texture_shows_there_is_no_answer() -> None:
    rng = np.random.default_rng(0)
    blank = np.full((96, 144, 3), 120)
    noisy = [(blank + rng.normal(0, 2, blank.shape)).astype(np.uint8) for _ in range(24)]
    assert label([blank.astype(np.uint8)] * 24) is None
    assert label(noisy) is None
    assert label([np.zeros((96, 144, 3), np.uint8)] * 24) is None


def test_a_thing_in_front_of_a_blank_wall_does_not_say_where_the_camera_goes() -> None:
    frames = [np.full((96, 144, 3), 120, np.uint8) for _ in range(24)]
    for number, frame in enumerate(frames):
        frame[30:60, 10 + 3 * number : 40 + 3 * number] = pictures()[3][:30, :30]
    assert label(frames) is None


def test_two_movements_at_once_or_in_turn_are_mixed() -> None:
    time = np.arange(48) / 24
    diagonal, there_and_back = np.zeros((2, 48, 4))
    diagonal[:, 0], diagonal[:, 1], diagonal[:, 2] = 0.2 * time, 0.2 * time, 1
    there_and_back[:, 0], there_and_back[:, 2] = 0.3 * np.minimum(time, 2 - time), 1
    for poses in (diagonal, there_and_back):
        assert label(render(pictures()[1], poses, 96, 96, np.random.default_rng(4))) == "mixed"


def test_a_part_of_a_file_is_measured_alone(tmp_path: Path) -> None:
    """A resting second, then a pan: `start` and `end` choose."""
    path = write_video(tmp_path / "a.mp4", still(1, 96, 96) + panned(0.3), fps=24)
    assert camera({"path": path, "end": 1.0})["cmotion"] == "static"
    row = camera({"path": path, "start": 1.0, "text": "kept"})
    assert (row["cmotion"], row["text"]) == ("pan_right", "kept")
    assert camera({"path": path, "start_frame": 24, "end_frame": 48})["cmotion"] == "pan_right"
    with pytest.raises(BadClip, match=r"from frame 72 to 48, the file has 48; .* correct start"):
        camera({"path": path, "start": 3.0})
    with pytest.raises(BadClip, match="start is 'soon'; a number is needed"):
        camera({"path": path, "start": "soon"})


def test_bad_clips_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match="has one frame; motion needs at least two; remove the row"):
        camera({"path": write_picture(tmp_path / "a.png")})
    path = Path(write_video(tmp_path / "a.mp4", still(1)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadClip, match=r"a\.mp4"):
        camera({"path": str(path)})
    with pytest.raises(ConfigError, match="--runs 0; at least 1"):
        camera({"path": str(path)}, runs=0)


if __name__ == "__main__":
    for seed in map(int, sys.argv[1:]):
        print(f"seed {seed}\n{confusion((clip, str(row['cmotion'])) for clip, row in measured_clips(seed))}")
