"""Vectors of clips for tools.dedupe.find."""

from pathlib import Path

import pytest

from opensora.errors import BadClip
from tests.support.clip_models import WIDTH, tiny_clip_model
from tests.support.media_files import write_video
from tools.dedupe.embed import Embed
from tools.score.clip import ClipEncoder, mean_vector


def test_embeddings_are_mean_vectors_of_length_one(tmp_path: Path) -> None:
    model = tiny_clip_model(tmp_path / "clip")
    rows = [{"path": write_video(tmp_path / "a.mp4", 9), "text": "kept"}, {"path": "none.mp4"}]
    result, missing = Embed(model=model, device="cpu", frames=3)(rows)
    [vectors] = ClipEncoder(model, "cpu").clips(rows[:1], 3)
    assert result["embedding"] == pytest.approx(mean_vector(vectors).tolist(), abs=1e-5)  # type: ignore[arg-type,index]
    assert (len(result["embedding"]), result["text"]) == (WIDTH, "kept")  # type: ignore[index]
    assert isinstance(missing, BadClip)
