"""PixArt and its multi-size form against the original's numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.shape_checks import ShapeError
from opensora.registry import MODELS, build, constructor
from tests.parity.denoisers import arguments, assert_forward, assert_keys, recorded_model
from tests.parity.golden import Golden, cases, directories, released_keys


def is_pixart(golden: Golden) -> bool:
    return golden.config.get("cls") in ("PixArt", "PixArtMS") and golden.has("state")


def model_of(golden: Golden) -> Callable[..., Any]:
    return constructor(MODELS, golden.config["cls"])


def inputs(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's inputs under the names they have here: `data_info` holds sides [B, 2] and ratio [B, 1]."""
    named = {name: tensor for name, tensor in recorded.items() if not name.startswith("data_info.")}
    if "data_info.hw" in recorded:
        named["height"], named["width"] = recorded["data_info.hw"].unbind(1)
        named["ar"] = recorded["data_info.ar"].squeeze(1)
    return named


@pytest.mark.parametrize("golden", directories(is_pixart, "PixArt"))
def test_keys_shapes_and_position_tables(golden: Golden) -> None:
    fresh, stored = model_of(golden)(**arguments(golden)), golden.state()
    assert_keys(fresh, golden)
    assert torch.equal(fresh.state_dict()["pos_embed"], stored["pos_embed"])
    assert torch.equal(fresh.state_dict()["pos_embed_temporal"], stored["pos_embed_temporal"])


@pytest.mark.parametrize("recorded", cases(is_pixart, "PixArt"))
def test_forward(recorded: tuple[Golden, str]) -> None:
    golden, name = recorded
    assert_forward(recorded_model(golden, model_of(golden)), golden, name, inputs=inputs)


@pytest.mark.parametrize("golden", directories(is_pixart, "PixArt"))
def test_other_sizes(golden: Golden) -> None:
    """A model of one size refuses others; the multi-size one never reads its stored table."""
    model = recorded_model(golden, model_of(golden))
    batch = inputs(golden.case(golden.case_names()[0]).inputs)
    if not model.fixed_size:
        with torch.no_grad():
            before = model(**batch)
            model.pos_embed.zero_()
            assert torch.equal(model(**batch), before)
    batch["x"] = torch.cat([batch["x"], batch["x"]], dim=-1)
    if model.fixed_size:
        with pytest.raises(ShapeError, match="built for"):
            model(**batch)
    else:
        assert model(**batch).shape == (len(batch["x"]), model.out_channels, *batch["x"].shape[2:])


RELEASED: dict[str, dict[str, Any]] = {
    "os1_0_PixArt-XL-2_1x256x256": {"type": "PixArt-XL/2", "input_size": (1, 32, 32)},
    "os1_0_PixArt-XL-2_1x512x512": {"type": "PixArt-XL/2", "input_size": (1, 64, 64)},
    "os1_0_PixArtMS-XL-2_1x1024": {"type": "PixArtMS-XL/2", "input_size": (1, 128, 128), "space_scale": 2.0},
}


@pytest.mark.parametrize("released", RELEASED)
def test_released_keys(released: str) -> None:
    """Every key and shape of the released full-size weights."""
    with torch.device("meta"):
        model = build(MODELS, RELEASED[released])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == released_keys(released)
