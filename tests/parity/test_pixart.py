"""PixArt and its multi-size form against the original's numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.pixart.pixart import PixArt
from opensora.models.shapes import ShapeError
from opensora.registry import MODELS, build
from tests.parity.golden import Golden, assert_parity, cases, directories, released_keys
from tests.parity.test_stdit import KERNEL_SWITCHES


def is_pixart(golden: Golden) -> bool:
    return golden.config.get("cls") in ("PixArt", "PixArtMS") and golden.has("state")


def fresh_model(golden: Golden) -> PixArt:
    kwargs: dict[str, Any] = {k: v for k, v in golden.config["kwargs"].items() if k not in KERNEL_SWITCHES}
    return build(MODELS, {"type": golden.config["cls"], **kwargs}).eval()


def recorded_model(golden: Golden) -> PixArt:
    model = fresh_model(golden)
    model.load_state_dict(golden.state(), strict=True)
    return model


def arguments(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's inputs under the names they have here: `data_info` holds sides [B, 2] and ratio [B, 1]."""
    named = {name: tensor for name, tensor in recorded.items() if not name.startswith("data_info.")}
    if "data_info.hw" in recorded:
        named["height"], named["width"] = recorded["data_info.hw"].unbind(1)
        named["ar"] = recorded["data_info.ar"].squeeze(1)
    return named


@pytest.mark.parametrize("golden", directories(is_pixart, "PixArt"))
def test_keys_shapes_and_position_tables(golden: Golden) -> None:
    fresh, stored = fresh_model(golden).state_dict(), golden.state()
    assert {key: list(value.shape) for key, value in fresh.items()} == golden.config["state_shapes"]
    assert torch.equal(fresh["pos_embed"], stored["pos_embed"])
    assert torch.equal(fresh["pos_embed_temporal"], stored["pos_embed_temporal"])


@pytest.mark.parametrize("recorded", cases(is_pixart, "PixArt"))
def test_forward(recorded: tuple[Golden, str]) -> None:
    golden, name = recorded
    case, model = golden.case(name), recorded_model(golden)
    seen: dict[str, Tensor] = {}
    for path in case.inner:
        model.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: seen.update({path: out}))
    with torch.no_grad():
        out = model(**arguments(case.inputs))
    assert out.dtype == torch.float32
    for path, expected in case.inner.items():
        assert_parity(seen[path].reshape(expected.shape), expected, what=path)
    assert_parity(out, case.out)


@pytest.mark.parametrize("golden", directories(is_pixart, "PixArt"))
def test_other_sizes(golden: Golden) -> None:
    """A model of one size refuses others; the multi-size one never reads its stored table."""
    model = recorded_model(golden)
    given = arguments(golden.case(golden.case_names()[0]).inputs)
    if not model.fixed_size:
        with torch.no_grad():
            before = model(**given)
            model.pos_embed.zero_()
            assert torch.equal(model(**given), before)
    given["x"] = torch.cat([given["x"], given["x"]], dim=-1)
    if model.fixed_size:
        with pytest.raises(ShapeError, match="this model was built for"):
            model(**given)
    else:
        assert model(**given).shape == (len(given["x"]), model.out_channels, *given["x"].shape[2:])


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
