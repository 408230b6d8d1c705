"""Shots are found where a video changes."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from opensora.datasets.decode import Video
from opensora.errors import ConfigError
from tests.support.media_files import write_video
from tools.datasets.probe import demo_videos
from tools.runner import Progress
from tools.scene_cut import detect as detect_module
from tools.scene_cut.detect import detect, scenes
from tools.scene_cut.detectors import DETECTORS, adaptive_cuts, clearness, frame_differences

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


def fading_video(path: Path) -> str:
    """20 bright frames, 10 that fade to black, 8 black ones, 10 that fade in, 20 bright ones of another color."""
    out, back = (np.linspace(1, 0, 10), np.linspace(0, 1, 10))
    levels = [*[1.0] * 20, *out, *[0.0] * 8, *back, *[1.0] * 20]
    colors = [np.array([200, 160, 40])] * 34 + [np.array([40, 120, 220])] * 34
    frames = [np.full((32, 64, 3), level * color, np.uint8) for level, color in zip(levels, colors, strict=True)]
    return write_video(path, frames)


def test_fades_are_cut_in_the_middle_of_the_dark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_module, "_FRAMES_PER_STATE", 6)
    row = {"path": fading_video(tmp_path / "a.mp4")}
    results = list(detect(row, detector="threshold"))
    assert [each["start_frame"] for each in results if isinstance(each, dict)] == [0, 34]
    states = [each.state for each in results if isinstance(each, Progress)]
    assert len(states) == 11
    assert max(len(state["differences"]) for state in states) < 14
    for state in states:
        rest = list(detect(row, json.loads(json.dumps(state)), detector="threshold"))
        assert [each["start_frame"] for each in rest if isinstance(each, dict)] == [0, 34]


def test_a_film_that_begins_dark(tmp_path: Path) -> None:
    """As PySceneDetect does, the cut is in the middle of the darkness."""
    frames = [np.full((32, 64, 3), level, np.uint8) for level in [0] * 20 + [120] * 20]
    path = write_video(tmp_path / "a.mp4", frames)
    assert [each["start_frame"] for each in detect({"path": path}, detector="threshold")] == [0, 10]  # type: ignore[index]


def test_of_cuts_close_together_the_first_or_strongest_counts() -> None:
    assert scenes([10, 12, 20], 30, 5) == [(0, 10), (10, 20), (20, 30)]
    assert scenes([10, 12, 20], 30, 5, {10: 30.0, 12: 60.0, 20: 50.0}) == [(0, 12), (12, 20), (20, 30)]
    assert scenes([2, 10], 30, 5) == [(0, 10), (10, 30)]  # too near the start
    assert scenes([2, 6], 30, 5) == [(0, 6), (6, 30)]
    assert scenes([10, 28], 30, 5) == [(0, 10), (10, 30)]
    assert scenes([24, 27], 30, 5) == [(0, 24), (24, 30)]  # the later one is too near the end
    assert scenes([], 30, 5) == [(0, 30)]
    assert scenes([10, 28], 30, 0) == [(0, 10), (10, 28), (28, 30)]
    assert scenes([0, 10], 30, 0) == [(0, 10), (10, 30)]


def test_a_chain_of_cuts_never_drags_the_first_along() -> None:
    """A whip pan right after a cut differs from frame to frame as much as a cut does."""
    assert scenes([100, 103, 106, 109], 200, 7) == [(0, 100), (100, 200)]
    assert scenes([95, 98, 101], 200, 7, {95: 30.0, 98: 28.0, 101: 90.0}) == [(0, 101), (101, 200)]
    assert scenes([100, 107, 114], 200, 7) == [(0, 100), (100, 107), (107, 114), (114, 200)]


@pytest.mark.parametrize(
    "differences",
    [
        [57.3, 17.7, 30.5, 26.1, 23.8, 28.1, 63.4, 16.0],  # then a branch sweeps past the camera, and away
        [61.2, 16.5, 24.2, 27.9, 32.8, 46.7, 29.7, 42.7, 31.7, 28.4, 29.8, 31.9],  # then a whip pan
    ],
)
def test_the_cut_of_a_run_stands_out_of_the_motion(differences: list[float]) -> None:
    """Two places of Big Buck Bunny, where the cut is the first frame; backwards it is the last."""
    for values, cut in ((differences, 100), (differences[::-1], 100 + len(differences) - 1)):
        by_frame = {100 + n: value for n, value in enumerate(values)}
        hits = [frame for frame, value in by_frame.items() if value >= 27]
        assert scenes(hits, 200, 7, clearness(hits, by_frame)) == [(0, cut), (cut, 200)]


def test_a_long_run_of_cuts_keeps_more_than_one() -> None:
    """Two seconds of stroboscope hide no cut for longer than its surroundings."""
    assert scenes(range(100, 148, 3), 200, 7) == [(0, 100), (100, 115), (115, 130), (130, 145), (145, 200)]


def test_a_long_film_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are those of a film read in one go, and each leads to the same scenes."""
    monkeypatch.setattr(detect_module, "_FRAMES_PER_STATE", 8)
    row = {"path": color_video(tmp_path / "a.mp4", 10, 7, 9)}
    whole = list(detect(row))
    states = [each for each in whole if isinstance(each, Progress)]
    assert [(each.done, each.total) for each in states] == [(8, 26), (16, 26), (24, 26)]
    cuts = [[frame for frame, value in each.state["differences"] if value > 27] for each in states]
    assert cuts == [[], [10], [10, 17]]
    assert [frame for frame, _ in states[-1].state["differences"]] == [*range(8, 13), *range(15, 20), *range(21, 24)]
    scenes_of_all = [each for each in whole if isinstance(each, dict)]
    assert [each["start_frame"] for each in scenes_of_all] == [0, 10, 17]
    for each in states:
        decoded: list[int] = []
        monkeypatch.setattr(Video, "frames", _recorded(Video.frames, decoded))
        rest = list(detect(row, json.loads(json.dumps(each.state))))
        monkeypatch.undo()
        monkeypatch.setattr(detect_module, "_FRAMES_PER_STATE", 8)
        assert decoded == list(range(each.done - 1, 26))
        assert [one for one in rest if isinstance(one, dict)] == scenes_of_all
        assert [one for one in rest if isinstance(one, Progress)] == states[states.index(each) + 1 :]


def _recorded(frames: Any, indices: list[int]) -> Any:
    def recorded(self: Video, wanted: Any, widest: int) -> Any:
        indices.extend(wanted)
        return frames(self, wanted, widest)

    return recorded


@pytest.mark.parametrize("detector", ["content", "adaptive"])
def test_real_footage(detector: Literal["content", "adaptive"]) -> None:
    """bikes.mp4 has six shots, the last one a third of a second long."""
    rows = [row for row in detect({"path": demo_videos()[0]}, detector=detector) if isinstance(row, dict)]
    assert [row["start_frame"] for row in rows] == [0, *BIKES_CUTS]
    assert rows[-1]["end_frame"] == 250


def test_scores_and_adaptive_cuts_are_those_of_pyscenedetect() -> None:
    """Its detectors on the same frames, with a threshold that more than the cuts pass."""
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    threshold, method = 1.2, DETECTORS["adaptive"]
    content = ContentDetector(min_scene_len=0)
    adaptive = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=0, min_content_val=1.0)
    expected, cuts = [], []
    with Video(demo_videos()[0]) as video:
        frames = [frame.copy() for frame in video.frames(range(video.info.num_frames), 64)]
    for number, frame in enumerate(frames):
        image, time = frame[..., ::-1].copy(), FrameTimecode(number, fps=25.0)
        content.process_frame(time, image)
        expected.append(content._frame_score)
        cuts += [cut.frame_num for cut in adaptive.process_frame(time, image)]
    scores = list(method.score(frames))
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    assert len(cuts) > len(BIKES_CUTS)
    assert [cut for cut in adaptive_cuts(dict(enumerate(scores)), threshold, len(frames), least=1.0)] == cuts


def test_scores_of_shrunk_frames_are_close_to_those_of_whole_ones() -> None:
    """Shrinking before the conversion of colors saves time, and changes scores by three percent at most."""
    import cv2

    with Video(demo_videos()[0], threads=2) as video:
        fast = list(frame_differences(video.frames(range(70, 82), 256)))
        whole = (cv2.resize(frame, (256, 109), interpolation=cv2.INTER_AREA) for frame in video.frames(range(70, 82)))
        slow = list(frame_differences(whole))
    np.testing.assert_allclose(fast, slow, rtol=0.03, atol=0.5)
    assert slow[6] > 40


@pytest.mark.parametrize("flags", [{"threshold": 0.0}, {"min_seconds": -1.0}, {"threshold": float("nan")}])
def test_wrong_flags(flags: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="both must be positive"):
        list(detect({"path": "a.mp4"}, **flags))
