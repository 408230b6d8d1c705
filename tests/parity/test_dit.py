"""DiT and Latte against the original's numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.models.shape_checks import ShapeError
from opensora.registry import MODELS, build, constructor
from tests.parity.denoisers import arguments, assert_keys, recorded_model
from tests.parity.golden import Golden, assert_parity, cases, directories, released_keys


def is_dit(golden: Golden) -> bool:
    return golden.config.get("cls") in ("DiT", "Latte") and golden.has("state")


def model_of(golden: Golden) -> Callable[..., Any]:
    return constructor(MODELS, golden.config["cls"])


def inputs(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original calls the timestep t."""
    return {"timestep" if name == "t" else name: tensor for name, tensor in recorded.items()}


@pytest.mark.parametrize("golden", directories(is_dit, "DiT and Latte"))
def test_keys_shapes_and_position_tables(golden: Golden) -> None:
    fresh, stored = model_of(golden)(**arguments(golden)), golden.state()
    assert_keys(fresh, golden)
    assert torch.equal(fresh.state_dict()["pos_embed_spatial"], stored["pos_embed_spatial"])
    assert torch.equal(fresh.state_dict()["pos_embed_temporal"], stored["pos_embed_temporal"])


@pytest.mark.parametrize("recorded", cases(is_dit, "DiT and Latte"))
def test_forward(recorded: tuple[Golden, str]) -> None:
    golden, name = recorded
    case, model = golden.case(name), recorded_model(golden, model_of(golden))
    outputs: dict[str, Tensor] = {}
    for path in case.inner:
        model.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: outputs.update({path: out}))
    with torch.no_grad():
        out = model(**inputs(case.inputs))
    assert out.dtype == torch.float32
    for path, expected in case.inner.items():
        inner = outputs[path]
        if golden.config["cls"] == "Latte" and path.startswith("blocks.") and int(path.split(".")[1]) % 2:
            inner = inner.transpose(1, 2)  # the original transposes the tokens of odd blocks to rows of time
        assert_parity(inner.reshape(expected.shape), expected, what=path)
    assert_parity(out, case.out)


@pytest.mark.parametrize("golden", directories(is_dit, "DiT and Latte"))
def test_other_sizes_are_refused(golden: Golden) -> None:
    model, batch = recorded_model(golden, model_of(golden)), inputs(golden.case(golden.case_names()[0]).inputs)
    batch["x"] = torch.cat([batch["x"], batch["x"]], dim=-1)
    with pytest.raises(ShapeError, match="built for"):
        model(**batch)


RELEASED: dict[str, dict[str, Any]] = {
    "os1_0_DiT-XL-2_label1000_256": {"type": "DiT-XL/2", "input_size": (1, 32, 32), "condition": "label_1000"},
    "os1_0_Latte-XL-2_label101_16x256x256": {
        "type": "Latte-XL/2",
        "input_size": (16, 32, 32),
        "condition": "label_101",
    },
    "os1_0_Latte-XL-2_text_16x256x256": {"type": "Latte-XL/2", "input_size": (16, 32, 32), "condition": "text"},
}


@pytest.mark.parametrize("released", RELEASED)
def test_released_keys(released: str) -> None:
    """Every key and shape of the released full-size weights."""
    with torch.device("meta"):
        model = build(MODELS, RELEASED[released])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == released_keys(released)
