"""Images and texts become vectors of one space."""

from pathlib import Path

import huggingface_hub.utils
import numpy as np
import pytest
import torch

from opensora.errors import BadClip, ConfigError
from tests.support.clip_models import WIDTH, tiny_clip_model
from tests.support.media_files import write_video
from tools.score.clip import ClipEncoder, mean_vector

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip_model(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(folder: str) -> ClipEncoder:
    return ClipEncoder(folder, "cpu")


def test_vectors_are_those_of_transformers_at_length_one(encoder: ClipEncoder, folder: str) -> None:
    from transformers import CLIPModel, CLIPProcessor

    frames = [RNG.integers(0, 256, (40, 64, 3)).astype(np.uint8), RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8)]
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder, use_fast=False)
    inputs = processor(
        text=["a red ball", "sea"], images=frames, return_tensors="pt", padding="max_length", max_length=24
    )
    with torch.no_grad():
        output = model(**inputs)
    torch.testing.assert_close(encoder.frames(frames), output.image_embeds)
    torch.testing.assert_close(encoder.texts(["a red ball", "sea"]), output.text_embeds)
    assert encoder.frames(frames).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_long_texts_are_cut(encoder: ClipEncoder) -> None:
    assert encoder.texts(["x" * 500]).shape == (1, WIDTH)


def test_clips_of_a_batch_are_independent(encoder: ClipEncoder, tmp_path: Path) -> None:
    rows = [{"path": write_video(tmp_path / f"{count}.mp4", count)} for count in (12, 2)]
    together = encoder.clips([rows[0], {"path": "none.mp4"}, rows[1]], 4)
    assert isinstance(together[1], BadClip)
    shapes = [tuple(each.shape) for each in together if not isinstance(each, BadClip)]
    assert shapes == [(4, WIDTH), (2, WIDTH)]  # the short clip has two frames only
    [alone] = encoder.clips(rows[1:], 4)
    torch.testing.assert_close(together[2], alone)
    assert mean_vector(alone).norm().item() == pytest.approx(1)  # type: ignore[arg-type]


def test_models_that_cannot_be_read_are_sentences(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=r"^--model .*none: cannot be read \(.*\); a folder with config.json"):
        ClipEncoder(str(tmp_path / "none"), "cpu")
    damaged = tmp_path / "damaged"
    tiny_clip_model(damaged)
    (damaged / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ConfigError, match=r"^--model .*damaged: cannot be read"):
        ClipEncoder(str(damaged), "cpu")
    with pytest.raises(ConfigError, match="platform: 'abacus' is unknown; allowed: cpu"):
        ClipEncoder(folder, "abacus")


def test_a_model_that_is_neither_here_nor_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes one question to the hub, not retries for half a minute."""
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: None)
    with pytest.raises(
        ConfigError,
        match=r"^--model someone/a-model: cannot be read \(it is not in the local hub .* cannot be reached\); ",
    ):
        ClipEncoder("someone/a-model", "cpu")


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_clip_model(tmp_path / "clip")
    weights = load_file(f"{folder}/model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 tensors are missing, such as visual_projection\.weight"):
        ClipEncoder(folder, "cpu")


def test_a_model_of_texts_only_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    folder = tiny_clip_model(tmp_path / "bert")
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=60, **layers)).save_pretrained(folder)
    with pytest.raises(ConfigError, match="is a BertModel, which has no vectors of images and texts in one space"):
        ClipEncoder(folder, "cpu")
