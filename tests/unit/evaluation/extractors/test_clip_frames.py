"""One CLIP vector for each frame."""

from pathlib import Path

import torch

from opensora.evaluation.extractors.clip_frames import CLIPFrames
from opensora.evaluation.image_text_encoder import ImageTextEncoder
from tests.support.clip_models import WIDTH, tiny_clip_model
from tests.support.evaluated_videos import evaluated, noise


def test_features_are_the_vectors_of_all_frames(tmp_path: Path) -> None:
    model, frames = tiny_clip_model(tmp_path / "clip"), noise(0, frames=18, height=16, width=16)
    extractor = CLIPFrames(model).load(torch.device("cpu"))
    features = extractor.features(evaluated(tmp_path / "a", frames))
    assert features.shape == (18, WIDTH)
    torch.testing.assert_close(features, ImageTextEncoder(model, "cpu").frames(frames))
    assert extractor.figure == "frechet_clip"
