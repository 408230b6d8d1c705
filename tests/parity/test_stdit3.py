"""STDiT3 of Open-Sora 1.2 and 1.3 against the originals' numbers."""

from typing import Any

import pytest
import torch

from opensora.models.stdit.stdit3 import STDiT3
from opensora.registry import MODELS, build
from tests.parity.denoisers import assert_forward, assert_keys, recorded_model
from tests.parity.golden import Golden, assert_parity, cases, directories, released_keys


def is_stdit3(golden: Golden) -> bool:
    return golden.config.get("cls") == "STDiT3" and golden.has("state")


def has_packed_captions(golden: Golden) -> bool:
    return is_stdit3(golden) and golden.config["kwargs"].get("skip_y_embedder", False)


def has_conditioning_frames(golden: Golden) -> bool:
    return is_stdit3(golden) and any(case["nontensor"] for case in golden.config["cases"].values())


def recorded(golden: Golden) -> Any:
    # Every model of 1.3 embeds conditioning latents and has 16 channels by default.
    of_1_3 = {"conditioned": True, "in_channels": 16} if golden.config["upstream"].startswith("os-v1.3") else {}
    return recorded_model(golden, STDiT3, **of_1_3)


@pytest.mark.parametrize("golden", directories(is_stdit3, "STDiT3"))
def test_keys_and_shapes(golden: Golden) -> None:
    assert_keys(recorded(golden), golden)


@pytest.mark.parametrize("case", cases(is_stdit3, "STDiT3"))
def test_forward(case: tuple[Golden, str]) -> None:
    golden, name = case
    assert_forward(recorded(golden), golden, name, **golden.config["cases"][name]["nontensor"])


@pytest.mark.parametrize("golden", directories(has_packed_captions, "STDiT3 with packed captions"))
def test_lengths_may_be_a_list(golden: Golden) -> None:
    case = golden.case(golden.case_names()[0])
    with torch.no_grad():
        out = recorded(golden)(**{**case.inputs, "mask": case.inputs["mask"].tolist()})
    assert_parity(out, case.out)


@pytest.mark.parametrize("golden", directories(has_conditioning_frames, "STDiT3 with conditioning frames"))
def test_empty_conditioning_is_text_to_video(golden: Golden) -> None:
    """An empty list adds only the biases of the embedders; if these are zero, it changes nothing."""
    name = next(name for name, case in golden.config["cases"].items() if case["nontensor"])
    batch = golden.case(name).inputs
    model = recorded(golden)
    zeros = torch.zeros_like(batch["x"])
    with torch.no_grad():
        with_biases = model(**{**batch, "cond": zeros, "cond_mask": zeros}, mask_index=[])
        for embedder in (model.x_embedder_cond, model.x_embedder_cond_mask):
            embedder.proj.bias.zero_()
        plain = model(**{**batch, "cond": None, "cond_mask": None})
        assert not torch.allclose(with_biases, plain)
        without_biases = model(**{**batch, "cond": zeros, "cond_mask": zeros}, mask_index=[])
    assert torch.equal(without_biases, plain)


@pytest.mark.parametrize(
    ("name", "released"),
    [("STDiT3-XL/2", "os1_2_STDiT3-XL-2"), ("STDiT3-XL/2-v1.3", "os1_3_STDiT3-XL-2")],
)
def test_released_keys(name: str, released: str) -> None:
    """Every key and shape of the released full-size weights."""
    with torch.device("meta"):
        model = build(MODELS, {"type": name})
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == released_keys(released)
