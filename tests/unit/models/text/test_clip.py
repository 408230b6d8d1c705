import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opensora.errors import ConfigError, WeightsError
from opensora.models.text.clip import ClipEncoder
from tests.support.text_models import CAPTIONS, tiny_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def test_one_token_is_the_state_of_the_captions_end(clip: Path) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = ClipEncoder(str(clip)).load()
    condition = encoder.encode(CAPTIONS[:1])
    tokens = CLIPTokenizer.from_pretrained(clip)(CAPTIONS[0], return_tensors="pt")  # without padding
    with torch.no_grad():
        states = CLIPTextModel.from_pretrained(clip).eval()(**tokens).last_hidden_state
    assert condition.mask_BL is None
    torch.testing.assert_close(condition.text_B1LC[0, 0, 0], states[0, -1], rtol=1e-4, atol=1e-5)
    assert encoder.denoiser_args == {"condition": "text", "caption_channels": 32, "model_max_length": 1}


def test_captions_are_cut_at_the_number_of_tokens(clip: Path) -> None:
    encoder = ClipEncoder(str(clip), max_tokens=4).load()
    same = encoder.encode(["ab cd", "ab xy"]).text_B1LC  # begin, a, b, end
    assert torch.equal(same[0], same[1])
    whole = ClipEncoder(str(clip)).load().encode(["ab cd", "ab xy"]).text_B1LC
    assert not torch.allclose(whole[0], whole[1])


@pytest.mark.parametrize(("length", "message"), [(0, "at least 1 token"), (78, "at most 77 tokens")])
def test_impossible_length_is_refused(clip: Path, length: int, message: str) -> None:
    for source in (str(clip), "openai/clip-vit-large-patch14"):
        with pytest.raises(ConfigError, match=rf"text_encoder\.max_tokens.*{length}.*{message}"):
            ClipEncoder(source, length)


def test_published_widths_need_no_file() -> None:
    assert ClipEncoder().output_dim == 512
    assert ClipEncoder("openai/clip-vit-large-patch14").output_dim == 768


def test_a_whole_clip_gives_its_text_half(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    text = CLIPTextConfig.from_pretrained(clip).to_dict()
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    whole.text_model.load_state_dict(
        {key.removeprefix("text_model."): value for key, value in load_file(clip / "model.safetensors").items()}
    )
    whole.save_pretrained(tmp_path)
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(clip / file, tmp_path)
    encoder = ClipEncoder(str(tmp_path))
    assert encoder.output_dim == 32
    alone = ClipEncoder(str(clip)).load().encode(CAPTIONS).text_B1LC
    assert torch.equal(encoder.load().encode(CAPTIONS).text_B1LC, alone)


def test_missing_tensor_is_reported(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    state = load_file(folder / "model.safetensors")
    del state["text_model.final_layer_norm.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 .*final_layer_norm\.weight"):
        ClipEncoder(str(folder)).load()
