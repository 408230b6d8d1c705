"""STDiT against the original's numbers."""

import re
from fractions import Fraction

import pytest
import torch

from opensora.models.layers.embed import CaptionEmbedder, sincos_spatial, sincos_temporal, timestep_features
from opensora.models.shape_checks import ShapeError
from opensora.models.stdit.stdit import STDiT
from opensora.registry import MODELS, build
from tests.parity.denoisers import arguments, assert_forward, assert_keys, recorded_model
from tests.parity.golden import Golden, assert_parity, cases, directories, released_keys


def is_stdit(golden: Golden) -> bool:
    return golden.config.get("cls") == "STDiT" and golden.has("state")


@pytest.mark.parametrize("golden", directories(is_stdit, "STDiT"))
def test_keys_and_shapes(golden: Golden) -> None:
    assert_keys(recorded_model(golden, STDiT), golden)


@pytest.mark.parametrize("golden", directories(is_stdit, "STDiT"))
def test_position_tables_are_the_stored_ones(golden: Golden) -> None:
    fresh = STDiT(**arguments(golden)).state_dict()
    stored = golden.state()
    assert torch.equal(fresh["pos_embed"], stored["pos_embed"])
    assert torch.equal(fresh["pos_embed_temporal"], stored["pos_embed_temporal"])


@pytest.mark.parametrize("recorded", cases(is_stdit, "STDiT"))
def test_forward(recorded: tuple[Golden, str]) -> None:
    golden, name = recorded
    assert_forward(recorded_model(golden, STDiT), golden, name)


@pytest.mark.parametrize("golden", directories(is_stdit, "STDiT"))
def test_other_sizes_are_refused(golden: Golden) -> None:
    model = recorded_model(golden, STDiT)
    x = golden.case(golden.case_names()[0]).inputs["x"]
    with pytest.raises(ShapeError, match="built for"):
        model(torch.cat([x, x], dim=-1), torch.zeros(len(x)), model.null_text(len(x)))


def is_tables(golden: Golden) -> bool:
    return golden.has("tables") and any(name.startswith("spatial_D") for name in golden.tensors("tables"))


@pytest.mark.parametrize("golden", directories(is_tables, "position tables"))
def test_tables(golden: Golden) -> None:
    """Position tables are bit-equal as stored; sine features of timesteps are equal to the precision of their angles.

    The last bits of float64 sines depend on the processor, and so does the last bit of float32 rates, which timesteps of
    up to a thousand multiply.
    """
    tables = golden.tensors("tables")
    for name, expected in tables.items():
        if spatial := re.fullmatch(r"spatial_D(\d+)_H(\d+)_W(\d+)_scale([\d.]+)_base(None|\d+)", name):
            width, rows, columns = (int(spatial[i]) for i in (1, 2, 3))
            base_size = None if spatial[5] == "None" else int(spatial[5])
            actual = torch.as_tensor(sincos_spatial(width, rows, columns, float(spatial[4]), base_size))
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
            assert torch.equal(actual.float(), expected.float()), name
        elif temporal := re.fullmatch(r"temporal_D(\d+)_T(\d+)_scale([\d.]+)", name):
            scale = float(Fraction(temporal[3]).limit_denominator(1000))  # the name has six decimals of a fraction
            actual = torch.as_tensor(sincos_temporal(int(temporal[1]), int(temporal[2]), scale))
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
            assert torch.equal(actual.float(), expected.float()), name
        elif features := re.fullmatch(r"timestep_emb_(\d+)", name):
            timesteps = tables["timestep_in"]
            angle_error = torch.finfo(torch.float32).eps * timesteps.abs().max().item()
            assert_parity(timestep_features(timesteps, int(features[1])), expected, 1e-5 + angle_error, what=name)


def is_caption_embedder(golden: Golden) -> bool:
    return golden.config.get("cls") == "CaptionEmbedder"


@pytest.mark.parametrize("golden", directories(is_caption_embedder, "CaptionEmbedder"))
def test_caption_embedder(golden: Golden) -> None:
    kwargs = golden.config["kwargs"]
    embedder = CaptionEmbedder(kwargs["in_channels"], kwargs["hidden_size"], kwargs["token_num"])
    embedder.load_state_dict(golden.state(), strict=True)
    recorded = golden.tensors("io")
    caption = recorded["in.caption"]
    assert_parity(embedder(caption), recorded["out.plain"])
    assert_parity(embedder(caption, recorded["in.force_drop_ids"] == 1), recorded["out.dropped"])


RELEASED = {
    "os1_0_STDiT-XL-2_16x256x256": (16, 32, 32),
    "os1_0_STDiT-XL-2_16x512x512": (16, 64, 64),
    "os1_0_STDiT-XL-2_64x512x512": (64, 64, 64),
}


@pytest.mark.parametrize("released", RELEASED)
def test_released_keys(released: str) -> None:
    """Every key and shape of the released full-size weights."""
    with torch.device("meta"):
        model = build(MODELS, {"type": "STDiT-XL/2", "input_size": RELEASED[released]})
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == released_keys(released)
