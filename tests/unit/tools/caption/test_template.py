"""Sentences name what was measured, and nothing else."""

import re
from pathlib import Path

import numpy as np
import pytest

from opensora.errors import BadClip
from tests.support.camera_clips import measured_clips, pictures
from tests.support.media_files import write_video
from tools.caption.template import describe, look, measure
from tools.score.motion import motion

WORDS = {  # movement -> what a sentence says of it
    "static": "camera is static",
    "pan_left": "pans left",
    "pan_right": "pans right",
    "tilt_up": "tilts up",
    "tilt_down": "tilts down",
    "zoom_in": "zooms in",
    "zoom_out": "zooms out",
    "roll_cw": r"rolls clockwise",
    "roll_ccw": "rolls counterclockwise",
    "shake": "camera shakes",
}
SEED = 0


def movements(text: str) -> set[str]:
    return {name for name, words in WORDS.items() if re.search(rf"\b{words}\b", text)}


def test_the_motion_of_sixty_clips_is_named_truthfully() -> None:
    """Of the clips of test_camera: at most 3 are said to move otherwise, and no sentence names a movement not measured."""
    rows = measured_clips(SEED)
    wrong = [(clip.name, describe(row)) for clip, row in rows if movements(describe(row)) != {clip.motion}]
    assert len(rows) == 60
    assert len(wrong) <= 3, wrong
    for clip, row in rows:
        text = describe(row)
        measured = {row["cmotion"]} - {None}  # without a measure no words
        assert measured == {"mixed"} or movements(text) == measured, (clip.name, text)


def test_a_whole_description() -> None:
    row = {
        "width": 1280,
        "height": 720,
        "num_frames": 132,
        "fps": 25.0,
        "brightness": 20.0,
        "colors": "green blue gray",
    }
    row |= {"cmotion": "pan_left", "camera_pan": -5.0, "flow": 12.0}
    assert describe(row) == (
        "A dark wide video of 1280x720 pixels and 5.3 seconds, mostly green, blue and gray. "
        "The camera pans left slowly and there is some motion."
    )


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ({}, "A video."),
        ({"cmotion": "", "flow": None, "brightness": float("nan"), "colors": None, "width": ""}, "A video."),
        ({"cmotion": "spinning", "flow": "fast"}, "A video."),
        ({"width": "64", "height": "64"}, "A square video of 64x64 pixels."),
        ({"width": 720, "height": 1280, "num_frames": 1, "fps": 25.0}, "A tall picture of 720x1280 pixels."),
        ({"num_frames": 24, "fps": 24}, "A video of 1 second."),
        ({"num_frames": 600, "fps": 24}, "A video of 25 seconds."),
        ({"brightness": 90, "colors": "white"}, "A bright video, mostly white."),
        ({"flow": 0.2}, "A video. Hardly anything moves."),
        ({"cmotion": "static", "flow": 30}, "A video. The camera is static and there is much motion."),
        ({"cmotion": "roll_cw", "camera_roll": "60"}, "A video. The camera rolls clockwise fast."),
        ({"cmotion": "roll_cw"}, "A video. The camera rolls clockwise."),
        ({"cmotion": "shake", "camera_pan": 30}, "A video. The camera shakes."),
        ({"cmotion": "mixed"}, "A video. The camera moves in several ways."),
        (
            {"cmotion": "mixed", "camera_pan": -20, "camera_zoom": 40, "camera_tilt": 2},
            "A video. The camera pans left and zooms in.",
        ),
    ],
)
def test_only_cells_with_a_value_give_words(cells: dict[str, object], text: str) -> None:
    assert describe({"path": "/nowhere.mp4", **cells}) == text


@pytest.mark.parametrize(
    ("color", "name"),
    [
        ((5, 5, 5), "black"),
        ((128, 128, 128), "gray"),
        ((250, 250, 250), "white"),
        ((210, 20, 20), "red"),
        ((20, 30, 220), "blue"),
        ((130, 190, 240), "blue"),
        ((30, 110, 40), "green"),
        ((250, 230, 60), "yellow"),
        ((245, 140, 20), "orange"),
        ((110, 70, 35), "brown"),
        ((125, 40, 170), "purple"),
        ((250, 150, 190), "pink"),
        ((30, 185, 180), "turquoise"),
    ],
)
def test_colors_have_their_names(color: tuple[int, int, int], name: str) -> None:
    noisy = np.array(color) + np.random.default_rng(0).normal(0, 4, (64, 64, 3))
    assert look([noisy.clip(0, 255).astype(np.uint8)])["colors"] == name


def test_colors_are_sorted_by_their_share() -> None:
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[:, :30], picture[:, 30:40], picture[:, 40:] = (210, 20, 20), (250, 230, 60), (20, 30, 220)
    assert look([picture])["colors"] == "blue red"  # yellow has a tenth
    assert look([picture * 0])["brightness"] == 0
    assert look([picture * 0 + 255])["brightness"] == 100


def test_colors_of_photographs() -> None:
    rabbit, driver = look([pictures()[1]]), look([pictures()[8]])
    assert "green" in rabbit["colors"]
    assert {"gray", "black"} & set(driver["colors"].split())


def test_cells_that_a_row_lacks_are_measured(tmp_path: Path) -> None:
    blue = [np.full((32, 64, 3), (20, 30, 220), np.uint8)] * 12
    path = write_video(tmp_path / "a.mp4", blue, fps=8)
    row = measure({"path": path, "width": 1, "text": "kept"})
    assert (row["width"], row["height"], row["num_frames"], row["fps"]) == (1, 32, 12, 8.0)
    assert (row["colors"], row["text"]) == ("blue", "kept")
    assert describe(motion(measure({"path": path}))) == (
        "A wide video of 64x32 pixels and 1.5 seconds, mostly blue. Hardly anything moves."
    )
    assert measure({"path": path, "end": 0.5})["num_frames"] == 4
    with pytest.raises(BadClip, match=r"b\.mp4"):
        measure({"path": str(tmp_path / "b.mp4")})
