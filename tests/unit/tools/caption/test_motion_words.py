import pytest

from opensora.sampling.prompt_syntax import add_scores
from tools.caption.motion_words import CAMERA, with_motion_words

ROW = {"cmotion": "pan_left", "flow": 5.24}


def test_sentences() -> None:
    assert with_motion_words("A dog runs", ROW, "sentences") == "A dog runs. The camera pans left."
    assert with_motion_words("A dog runs.", {"cmotion": "static"}, "sentences") == "A dog runs. The camera is static."
    assert with_motion_words("The camera follows a dog.", ROW, "sentences") == "The camera follows a dog."
    assert with_motion_words("A dog runs", ROW, "none") == "A dog runs"


def test_words_of_open_sora_are_those_of_sampling() -> None:
    text = with_motion_words("A dog runs.", ROW, "open_sora")
    assert text == "A dog runs. motion score: 5.2. camera motion: pan left."
    assert text == add_scores("A dog runs.", flow=5.24, camera_motion="pan left")
    assert with_motion_words(text, {"cmotion": "tilt_up", "flow": 1}, "open_sora") == text


@pytest.mark.parametrize("row", [{}, {"cmotion": None, "flow": None}, {"cmotion": "", "flow": "nan"}, {"flow": "fast"}])
def test_rows_without_measurements_add_nothing(row: dict[str, object]) -> None:
    assert with_motion_words("A dog runs", row, "sentences") == "A dog runs"
    assert with_motion_words("A dog runs", row, "open_sora") == "A dog runs"


def test_every_camera_motion_has_a_sentence() -> None:
    kinds = "static pan_left pan_right tilt_up tilt_down zoom_in zoom_out roll_cw roll_ccw shake mixed"
    assert list(CAMERA) == kinds.split()
