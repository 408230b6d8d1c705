"""Motion and flicker of clips whose movement and brightness are known."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.errors import ConfigError, DataError
from opensora.evaluation.metrics.motion import Flicker, Motion
from tests.support.evaluated_videos import Frame, evaluated, noise, values

CPU = torch.device("cpu")
SIDE, FPS = 64, 15  # pixels, frames per second


def panned(step: int, frames: int = 9, offsets: tuple[int, ...] = (0,)) -> list[Frame]:
    """A window over a soft random texture; it goes `step` pixels to the right for each frame. offsets: added to its levels."""
    import cv2

    picture = np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE + 8 * step * frames, 3))
    picture = cv2.GaussianBlur(picture, (0, 0), 2)
    picture = 30 + 190 * (picture - picture.min()) / (picture.max() - picture.min())
    windows = [picture[:, step * number : step * number + SIDE] for number in range(frames)]
    return [(each.astype(int) + offsets[n % len(offsets)]).astype(np.uint8) for n, each in enumerate(windows)]


def test_motion_is_the_speed_of_a_pan_and_its_ratio_to_the_references(tmp_path: Path) -> None:
    fast, slow = (evaluated(tmp_path / f"{step}", panned(step), fps=FPS) for step in (2, 1))
    measured = values(Motion().measure([fast], [slow, slow], CPU))
    speed = 100 * FPS / SIDE  # percent of the shorter side per second, of one pixel per frame
    assert measured["flow"] == pytest.approx(2 * speed, rel=0.08)
    assert measured["flow of references"] == pytest.approx(speed, rel=0.08)
    assert measured["flow_ratio"] == pytest.approx(2, rel=0.05)
    assert measured["static"] < 0.05
    assert measured["jitter"] < 0.1 * speed
    assert "flow_ratio" not in values(Motion().measure([fast], [], CPU))


def test_still_references_have_no_ratio(tmp_path: Path) -> None:
    moving, still = (evaluated(tmp_path / f"{step}", panned(step), fps=FPS) for step in (2, 0))
    measured = values(Motion().measure([moving], [still], CPU))
    assert measured["flow of references"] == 0
    assert "flow_ratio" not in measured
    assert values(Motion().measure([still], [], CPU)) == {"flow": 0, "static": 1, "jitter": 0}


def test_jitter_is_of_the_videos_that_are_long_enough(tmp_path: Path) -> None:
    """Of two frames nothing is known of how the movement changes: no jitter is not a jitter of 0."""
    frames = panned(1)
    shaken = evaluated(tmp_path / "a", [frames[number] for number in (0, 2, 0, 2, 0, 2)], fps=FPS)
    short = evaluated(tmp_path / "b", frames[:2], fps=FPS)
    [alone] = [figure for figure in Motion().measure([shaken], [], CPU).figures if figure.name == "jitter"]
    assert alone.value == pytest.approx(4 * 100 * FPS / SIDE, rel=0.1)  # from 2 pixels one way to 2 the other
    [among] = [figure for figure in Motion().measure([shaken, short], [], CPU).figures if figure.name == "jitter"]
    assert (among.value, among.per_video) == (alone.value, ())
    assert among.note == "of 1 of 2 videos; the others are too short"
    assert list(values(Motion().measure([short], [], CPU))) == ["flow", "static"]


def test_flicker_of_a_still_picture_is_the_change_of_its_brightness(tmp_path: Path) -> None:
    """Brightness that goes up and down by 10 changes by 20 from one frame to the next."""
    flickering = evaluated(tmp_path / "a", panned(0, offsets=(10, -10)))
    still = evaluated(tmp_path / "b", panned(0))
    measured = values(Flicker().measure([flickering], [], CPU))
    assert measured["change"] == pytest.approx(20)
    assert measured["temporal_flickering"] == pytest.approx(235 / 255)
    assert measured["flicker"] == pytest.approx(20, rel=0.1)
    assert values(Flicker().measure([still], [], CPU)) == {"temporal_flickering": 1, "change": 0, "flicker": 0}


def test_motion_changes_frames_but_does_not_flicker(tmp_path: Path) -> None:
    frames = panned(2)
    measured = values(Flicker().measure([evaluated(tmp_path / "a", frames)], [], CPU))
    by_hand = np.mean([np.abs(after.astype(float) - before).mean() for before, after in pairwise(frames)])
    assert measured["change"] == pytest.approx(by_hand)
    assert by_hand > 10
    assert measured["flicker"] < 0.2 * by_hand
    both = values(Flicker().measure([evaluated(tmp_path / "b", panned(2, offsets=(10, -10)))], [], CPU))
    assert both["flicker"] == pytest.approx(20, rel=0.2)


def test_one_frame_does_not_move(tmp_path: Path) -> None:
    single = evaluated(tmp_path / "a", noise(0, frames=1))
    for metric, name in ((Motion(), "motion"), (Flicker(), "flicker")):
        with pytest.raises(DataError, match=rf"a\.mkv: has one frame; {name} needs at least two"):
            metric.measure([single], [], CPU)
    with pytest.raises(ConfigError, match="Motion: runs=0; at least 1"):
        Motion(runs=0)
