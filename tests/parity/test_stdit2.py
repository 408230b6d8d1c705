"""STDiT2 against the original's numbers."""

from typing import Any

import pytest
import torch

from opensora.models.layers.embed import sincos_any_size
from opensora.models.layers.norm import RMSNorm
from opensora.models.layers.rope import pair_rotation, rope_frequencies, rotate_pairs
from opensora.models.stdit.stdit2 import STDiT2
from opensora.registry import MODELS, build
from tests.parity.denoisers import assert_forward, assert_keys, recorded_model
from tests.parity.golden import Golden, assert_parity, cases, directories, released_keys


def is_stdit2(golden: Golden) -> bool:
    return golden.config.get("cls") == "STDiT2" and golden.has("state")


def recorded(golden: Golden) -> Any:
    # Open-Sora 1.1 always rotates before the norm; later versions do it if qk_norm_legacy is set.
    return recorded_model(golden, STDiT2, qk_norm_legacy=golden.config["upstream"].startswith("os-v1.1"))


@pytest.mark.parametrize("golden", directories(is_stdit2, "STDiT2"))
def test_keys_and_shapes(golden: Golden) -> None:
    assert_keys(recorded(golden), golden)


@pytest.mark.parametrize("case", cases(is_stdit2, "STDiT2"))
def test_forward(case: tuple[Golden, str]) -> None:
    golden, name = case
    assert_forward(recorded(golden), golden, name)


@pytest.mark.parametrize("golden", directories(is_stdit2, "STDiT2"))
def test_frequencies_are_formula_or_stored(golden: Golden) -> None:
    """The stored frequencies equal the formula, or were perturbed so that test_forward shows that they are used."""
    stored = golden.state()["rope.freqs"]
    perturbed = golden.config["rope_freqs_perturbed"]
    assert torch.equal(rope_frequencies(2 * len(stored)), stored) is not perturbed


def is_tables(golden: Golden) -> bool:
    return golden.has("tables") and "rope_in" in golden.tensors("tables")


@pytest.mark.parametrize("golden", directories(is_tables, "rotary tables"))
def test_rotation_and_norm(golden: Golden) -> None:
    tables = golden.tensors("tables")
    x, freqs = tables["rope_in"], tables["rope_freqs"]
    angles = torch.arange(x.shape[-2])[:, None] * freqs
    assert_parity(rotate_pairs(x, angles), tables["rope_out"])
    assert torch.equal(pair_rotation(angles)(x), rotate_pairs(x, angles))
    norm = RMSNorm(len(tables["rmsnorm_w"]))
    norm.load_state_dict({"weight": tables["rmsnorm_w"]})
    assert_parity(norm(tables["rmsnorm_in"]), tables["rmsnorm_out"])


@pytest.mark.parametrize("golden", directories(is_tables, "rotary tables"))
def test_position_tables(golden: Golden) -> None:
    tables = {name: table for name, table in golden.tensors("tables").items() if name.startswith("D")}
    assert tables
    for name, expected in tables.items():
        width, rows, columns = (int(part[1:]) for part in name.split("_")[:3])
        scale, base = name.split("_scale")[1].split("_base")
        own = round((rows * columns) ** 0.5)  # the base of every model
        stretch = own / (own if base == "None" else int(base))
        table = sincos_any_size(width, rows, columns, float(scale) * stretch, torch.float32, torch.device("cpu"))
        assert_parity(table[None], expected, what=name)


def test_released_keys() -> None:
    """Every key and shape of the released full-size weights."""
    with torch.device("meta"):
        model = build(MODELS, {"type": "STDiT2-XL/2"})
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == released_keys("os1_1_STDiT2-XL-2")
