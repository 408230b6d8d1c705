"""PixArt weights in the video models: all values, the reported lists, and the image model's output on one frame."""

import hashlib
import inspect
import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.errors import WeightsError
from opensora.models.conversion.convert_weights import Report, convert_weights
from opensora.models.conversion.families import FAMILIES
from opensora.models.conversion.infer_arguments import infer_sizes
from opensora.registry import MODELS, constructor, names
from tests.parity.golden import Golden, assert_parity, directories

BLOCKS_LEFT_OUT = re.compile(r"blocks\.")  # matches names that the original did not load


def is_initialisation(golden: Golden) -> bool:
    recorded = "sha256_of_float32_bytes_after" in golden.config
    return recorded and golden.has("source_checkpoint") and golden.has("model_before")


INITIALISATIONS = directories(is_initialisation, "initialisation from PixArt")


def family_of(golden: Golden) -> str:
    return "pixart-sigma" if "Sigma" in golden.config["checkpoint_file_name"] else "pixart-alpha"


def class_of(state: Mapping[str, Tensor]) -> str:
    if any(name.startswith("spatial_blocks.") for name in state):
        return "STDiT3"
    return "STDiT2" if "t_block_temp.1.weight" in state else "STDiT"


def arguments_for(state: Mapping[str, Tensor], accepted: Any) -> dict[str, Any]:
    """The constructor arguments inferred from the shapes of a model; the number of heads only from a q_norm."""
    weight = state["x_embedder.proj.weight"]
    width, channels, *patch = weight.shape
    blocks = {name.split(".")[1] for name in state if re.match(r"(spatial_)?blocks\.", name)}
    norm = next((tensor for name, tensor in state.items() if name.endswith("attn.q_norm.weight")), None)
    windowed = norm is not None and "rope.freqs" in state and 6 * len(state["rope.freqs"]) == len(norm)
    perceptron = next(tensor for name, tensor in state.items() if name.endswith("mlp.fc1.weight"))
    outputs = len(state["final_layer.linear.weight"]) // math.prod(patch)
    inferred = {
        "hidden_size": width,
        "in_channels": channels,
        "patch_size": tuple(patch),
        "depth": len(blocks),
        "mlp_ratio": len(perceptron) / width,
        "pred_sigma": outputs == 2 * channels,
        "caption_channels": state["y_embedder.y_embedding"].shape[1],
        "qk_norm": norm is not None,
        "num_heads": width // len(norm) if norm is not None else 1,
        "kernel_size": (8, 8, -1) if windowed else None,
        **infer_sizes(state, accepted),
    }
    return {key: value for key, value in inferred.items() if key in accepted}


def before(golden: Golden, **changes: Any) -> nn.Module:
    """The recorded model before the conversion, with `changes` to its arguments and computed position tables."""
    stored = golden.tensors("model_before")
    build = constructor(MODELS, class_of(stored))
    model = build(**{**arguments_for(stored, inspect.signature(build).parameters), **changes})
    computed = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("pos_embed")}
    model.load_state_dict({**stored, **computed}, strict=True)
    return model.eval()


def converted(golden: Golden, model: nn.Module) -> Report:
    rule = FAMILIES[family_of(golden)].rules[type(model).__name__]
    return convert_weights(model, golden.tensors("source_checkpoint"), rule, golden.name)


def fingerprint(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()


@cache
def is_known(name: str) -> bool:
    return name in names(MODELS)


def needs_target(golden: Golden) -> None:
    target = class_of(golden.tensors("model_before"))
    if not is_known(target):
        pytest.skip(f"no model {target}")


def left_out(golden: Golden) -> dict[str, str]:
    """Our name -> name of blocks that the original did not load, because it renamed only those of PixArt-Sigma."""
    names = [name for name in golden.config["unexpected"] if BLOCKS_LEFT_OUT.match(name)]
    return {f"spatial_{name}": name for name in names}


@pytest.mark.parametrize("golden", INITIALISATIONS)
def test_every_value(golden: Golden) -> None:
    needs_target(golden)
    model = before(golden)
    converted(golden, model)
    state, source, renamed = model.state_dict(), golden.tensors("source_checkpoint"), left_out(golden)
    expected = golden.config["sha256_of_float32_bytes_after"]
    assert set(state) == set(expected)
    for name, tensor in state.items():
        fingerprint_of_original = fingerprint(source[renamed[name]]) if name in renamed else expected[name]
        assert fingerprint(tensor) == fingerprint_of_original, name


@pytest.mark.parametrize("golden", INITIALISATIONS)
def test_every_list(golden: Golden) -> None:
    """The lists differ in one way: blocks that the original left out without a message are loaded."""
    needs_target(golden)
    report, ours = converted(golden, before(golden)), left_out(golden)
    assert set(report.loaded) == {*golden.config["loaded"], *ours}
    assert set(report.missing) == set(golden.config["missing"]) - set(ours)
    assert set(report.unexpected) == set(golden.config["unexpected"]) - set(ours.values())
    assert not report.unexpected
    source, model = golden.tensors("source_checkpoint"), golden.tensors("model_before")
    bigger = {
        name
        for name in report.loaded
        if (origin := source.get(name.removeprefix("spatial_"))) is not None and origin.shape != model[name].shape
    }
    assert set(report.reshaped) == bigger
    assert "x_embedder.proj.weight" in bigger


def has_one_frame(golden: Golden) -> bool:
    return is_initialisation(golden) and golden.has("one_frame_equivalence")


@pytest.mark.parametrize("golden", directories(has_one_frame, "one-frame equivalence"))
@torch.no_grad()
def test_one_frame_is_the_image_model(golden: Golden) -> None:
    """The recording says neither heads nor scale of its one-frame models; with one choice of both all outputs agree."""
    needs_target(golden)
    recorded, source = golden.tensors("one_frame_equivalence"), golden.tensors("source_checkpoint")
    x, y = recorded["in.x"], recorded["in.y"]
    width, matching = len(source["x_embedder.proj.bias"]), []
    scales = {1.0, infer_sizes(golden.tensors("model_before"), ["space_scale"])["space_scale"]}
    for heads, scale in [(n, scale) for n in range(1, width + 1) if width % n == 0 for scale in scales]:
        video = before(golden, input_size=x.shape[2:], num_heads=heads, space_scale=scale)
        converted(golden, video)
        out = video(x, recorded["in.t"], y, recorded["in.mask"])
        if (out - recorded["out.stdit"]).abs().max() <= 1e-5 * max(1.0, recorded["out.stdit"].abs().max()):
            matching.append((heads, scale, out))
    assert len(matching) == 1, f"{len(matching)} choices of heads and scale give the recorded output"
    heads, scale, out = matching[0]
    assert_parity(out, recorded["out.pixart"], what="video model against the recorded image model")
    if is_known("PixArt"):
        keys = inspect.signature(constructor(MODELS, "PixArt")).parameters
        arguments = arguments_for(golden.tensors("model_before"), keys)
        chosen = {"input_size": x.shape[2:], "num_heads": heads, "space_scale": scale, "no_temporal_pos_emb": True}
        image = constructor(MODELS, "PixArt")(**{**arguments, **chosen}).eval()
        convert_weights(image, source, FAMILIES[family_of(golden)].rules["PixArt"], golden.name)
        same = image(x, recorded["in.t"], y, recorded["in.mask"])
        assert_parity(same, recorded["out.pixart"], what="image model")
        assert_parity(out, same, tolerance=1e-6, what="video model against image model")


@pytest.mark.parametrize("golden", INITIALISATIONS)
def test_a_file_without_blocks_is_refused(golden: Golden) -> None:
    needs_target(golden)
    model = before(golden)
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rest = {k: v for k, v in golden.tensors("source_checkpoint").items() if not k.startswith("blocks.")}
    with pytest.raises(WeightsError, match="fills no block"):
        convert_weights(model, rest, FAMILIES[family_of(golden)].rules[type(model).__name__], "half")
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())
