"""The cosine of a caption and its clip."""

from pathlib import Path

import pytest

from opensora.errors import BadClip
from tests.support.clip_models import tiny_clip_model
from tests.support.media_files import write_video
from tools.score.clip import ClipEncoder, mean_vector
from tools.score.match import Match


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip_model(tmp_path_factory.mktemp("clip"))


def test_match_is_the_plain_cosine(model: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 9)
    rows = [{"path": path, "text": text} for text in ("a red ball", "", "the sea")] + [
        {"path": "none.mp4", "text": "x"}
    ]
    ball, empty, sea, missing = Match(model=model, device="cpu", frames=3)(rows)
    encoder = ClipEncoder(model, "cpu")
    [vectors] = encoder.clips(rows[:1], 3)
    cosines = (encoder.texts(["a red ball", "the sea"]) @ mean_vector(vectors)).tolist()  # type: ignore[arg-type]
    assert [ball["match"], sea["match"]] == pytest.approx(cosines, abs=1e-4)  # type: ignore[index]
    assert ball["match"] != sea["match"]  # type: ignore[index]
    assert str(empty) == f"{path}: column 'text' is empty; a caption is needed; write one"
    assert isinstance(missing, BadClip)


def test_captions_may_be_in_another_column(model: str, tmp_path: Path) -> None:
    row = {"path": write_video(tmp_path / "a.mp4", 2), "text": "a red ball", "title": "the sea"}
    results = [Match(model=model, device="cpu", column=column)([row])[0] for column in ("text", "title")]
    assert results[0]["match"] != results[1]["match"]  # type: ignore[index]
