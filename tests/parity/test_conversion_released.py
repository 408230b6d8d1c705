"""Every conversion at full released size, on meta tensors made from the released key lists."""

import inspect
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.models.conversion.convert_weights import Report, convert_weights, matches_any
from opensora.models.conversion.families import FAMILIES, Family
from opensora.models.conversion.infer_arguments import infer_sizes
from opensora.registry import MODELS, VAES, constructor, names
from tests.parity.golden import golden_folder, released_keys
from tools.weights import convert

VIDEO = ("STDiT", "STDiT2", "STDiT3")
# Pattern of key lists' names -> family; the group is the class of the model.
KINDS = {
    r"os1_\d_(STDiT)-.*": "stdit",
    r"os1_\d_(STDiT2)-.*": "stdit2",
    r"os1_\d_(STDiT3)-.*": "stdit3",
    r"os1_\d_(PixArt|PixArtMS)-.*": "pixart-alpha",
    r"os1_\d_(DiT)-.*label.*": "dit",
    r"os1_\d_(Latte)-.*": "latte",
    r"(latte_t2v)_.*": "latte-t2v",
    r"(causalvae)_v1\.1.*": "causal-vae",
    r"os1_\d_(OpenSoraVAE)_V1_3": "open-sora-vae",
}


def lists(pattern: str) -> list[str]:
    folder = golden_folder() / "keys"
    return [f.stem for f in sorted(folder.glob("*.json")) if re.fullmatch(pattern, f.stem)]


def parameters(values: list[Any], arguments: int = 1) -> list[Any]:
    """The values; if there are none, one skipped set of `arguments` parameters whose reason names the folder."""
    reason = f"no such key lists in {golden_folder() / 'keys'} (set OPENSORA_GOLDEN)"
    return values or [pytest.param(*[None] * arguments, id="absent", marks=pytest.mark.skip(reason=reason))]


def on_meta(listed: str) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in released_keys(listed).items()}


def built(listed: str, family: Family, state: dict[str, Tensor]) -> nn.Module:
    """The registered model that a key list describes, on meta."""
    content = json.loads((golden_folder() / "keys" / f"{listed}.json").read_text())
    registry = MODELS if family.registry == "model" else VAES
    size = re.match(r"os1_\d_([A-Za-z0-9]+-XL)-2", listed)
    name = f"{size[1]}/2" if size else content.get("model")
    name = name if size or name in names(registry) else family.default(state)
    if name not in names(registry):
        pytest.skip(f"no {registry.name} {name}")
    build = constructor(registry, name)
    accepted = inspect.signature(build).parameters
    arguments = content.get("kwargs") or content.get("config") or {}
    arguments = {k: float(Fraction(v)) if v == "2/3" else v for k, v in arguments.items() if k in accepted}
    with torch.device("meta"):
        return build(**{**infer_sizes(state, accepted), **arguments})


def rule_for(model: nn.Module, family: Family) -> Any:
    return family.rules[type(model).__name__]


@pytest.mark.parametrize(
    ("listed", "family"), parameters([(name, family) for kind, family in KINDS.items() for name in lists(kind)], 2)
)
def test_released_weights_fill_their_model(listed: str, family: str) -> None:
    """All weights of the file are loaded and none is missing, except position tables, which are computed."""
    state = on_meta(listed)
    model = built(listed, FAMILIES[family], state)
    report = convert_weights(model, state, rule_for(model, FAMILIES[family]), listed)
    assert set(report.missing) == set(report.tables) == set(report.dropped)
    assert set(report.loaded) == set(state) - set(report.tables)
    assert not report.unexpected
    assert not report.reshaped
    assert not any(report.tables.values())  # all have the size inferred from the shapes
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == released_keys(listed)


def pixart_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the patch embedding of images, without the axis of frames."""
    weight = state["x_embedder.proj.weight"]
    return {**state, "x_embedder.proj.weight": torch.empty(weight.shape[:2] + weight.shape[3:], device="meta")}


def pixart_file(listed: str) -> dict[str, Tensor]:
    """PixArt's own file: image patches, one position table."""
    state = pixart_like(on_meta(listed))
    state.pop("pos_embed_temporal")
    return state


def converted(listed: str, target: str) -> tuple[nn.Module, Report]:
    family = FAMILIES[target_kind(target)]
    model = built(target, family, on_meta(target))
    rule = FAMILIES["pixart-alpha"].rules[type(model).__name__]
    return model, convert_weights(model, pixart_file(listed), rule, listed)


def target_kind(target: str) -> str:
    return next(family for kind, family in KINDS.items() if re.fullmatch(kind, target))


PAIRS = [(source, target) for source in lists(r"os1_\d_PixArt.*") for target in lists(r"os1_\d_STDiT.*")]


@pytest.mark.parametrize(("listed", "target"), parameters(PAIRS, 2))
def test_pixart_fills_the_video_models(listed: str, target: str) -> None:
    target_keys = released_keys(target)
    channels = [keys["x_embedder.proj.weight"][1] for keys in (target_keys, released_keys(listed))]
    by_latents = {"x_embedder.proj.weight", "final_layer.linear.weight", "final_layer.linear.bias"}
    model, report = converted(listed, target)
    rule = FAMILIES["pixart-alpha"].rules[type(model).__name__]
    source = pixart_file(listed)
    assert {*report.loaded, *report.missing} == set(target_keys)
    assert set(report.unfit) == (set() if channels[0] == channels[1] else by_latents)
    left = len(report.dropped) + len(report.unexpected) + len(report.unfit)
    assert len(report.loaded) == len(source) - left
    assert report.dropped == ["pos_embed"]
    fresh = [name for name in report.missing if name not in report.tables and name not in report.unfit]
    assert fresh
    assert all(matches_any(name, rule.fresh) for name in fresh)
    depth = len({name.split(".")[1] for name in source if name.startswith("blocks.")})
    filled = [name for name in report.loaded if re.match(r"(spatial_)?blocks\.", name)]
    assert len(filled) == sum(name.startswith("blocks.") for name in source) == 15 * depth
    assert set(report.tables) == {name for name in target_keys if name.startswith("pos_embed")}
    lengths = released_keys(listed)["y_embedder.y_embedding"][0], target_keys["y_embedder.y_embedding"][0]
    assert ("y_embedder.y_embedding" in report.reshaped) == (lengths[0] != lengths[1])
    assert list(model.state_dict()["y_embedder.y_embedding"].shape) == target_keys["y_embedder.y_embedding"]


@pytest.mark.parametrize("listed", parameters(lists(r"os1_\d_AutoencoderKL.*")))
def test_an_image_autoencoder_fills_the_causal_one(listed: str) -> None:
    """All weights of the file are loaded, 2-D kernels inflated; only layers that change the number of frames are missing."""
    from opensora.models.vae.causal_vae import CausalVAEModel

    with torch.device("meta"):
        model = CausalVAEModel()
    state = on_meta(listed)
    rule = FAMILIES["sd-vae"].rules["CausalVAEModel"]
    report = convert_weights(model, state, rule, listed)
    assert len(report.loaded) == len(state)
    assert report.missing
    assert all(matches_any(name, rule.fresh) for name in report.missing)
    deep = {name for name, t in model.state_dict().items() if t.ndim == 5 and t.shape[2] > 1}
    assert set(report.reshaped) == deep - set(report.missing)


@pytest.mark.parametrize("target", parameters(lists(r"os1_[012]_STDiT.*")))
@pytest.mark.parametrize("many_sizes", [False, True], ids=["512", "1024-MS"])
def test_pixart_of_diffusers_fills_the_video_models(target: str, many_sizes: bool) -> None:
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        image = PixArtTransformer2DModel(
            sample_size=128 if many_sizes else 64, caption_channels=4096, use_additional_conditions=many_sizes
        )
    model = built(target, FAMILIES[target_kind(target)], on_meta(target))
    rule = FAMILIES["pixart-diffusers"].rules[type(model).__name__]
    report = convert_weights(model, image.state_dict(), rule, target)
    native = converted("os1_0_PixArtMS-XL-2_1x1024" if many_sizes else "os1_0_PixArt-XL-2_1x512x512", target)[1]
    null = "y_embedder.y_embedding"  # is in PixArt's own files only
    assert set(report.loaded) == set(native.loaded) - {null}
    assert set(report.missing) == {*native.missing, null}
    assert set(report.unexpected) == set(native.unexpected)


@pytest.mark.parametrize("listed", parameters(lists(r"os1_\d_STDiT3.*")))
def test_the_release_is_inferred_from_its_tensors(listed: str) -> None:
    """Without a target, both releases of STDiT3 select the registered name with their sizes."""
    state = on_meta(listed)
    with torch.device("meta"):
        model = constructor(MODELS, FAMILIES["stdit3"].default(state) or "")()
    assert set(convert_weights(model, state, FAMILIES["stdit3"].rules["STDiT3"], listed).loaded) == set(state)


def test_loss_of_a_lightning_checkpoint_is_dropped() -> None:
    listed = "causalvae_v1.1.0"
    state = on_meta(listed)
    content = json.loads((golden_folder() / "keys" / f"{listed}.json").read_text())
    loss = {name: torch.empty(shape, device="meta") for name, shape in content["loss_state_dict"].items()}
    model = built(listed, FAMILIES["causal-vae"], state)
    report = convert_weights(model, {**state, **loss}, rule_for(model, FAMILIES["causal-vae"]), listed)
    assert set(report.dropped) == set(loss)
    assert set(report.loaded) == set(state)


def test_a_pipeline_of_two_autoencoders() -> None:
    """The file of Open-Sora 1.2 has a spatial part, a temporal part, and scale and shift of latents."""
    if "OpenSoraVAE_V1_2" not in names(VAES):
        pytest.skip("no vae OpenSoraVAE_V1_2")
    state = {f"spatial_vae.module.{k}": v for k, v in on_meta("os1_2_AutoencoderKL_spatial").items()}
    state |= {f"temporal_vae.{k}": v for k, v in on_meta("os1_2_VAE_Temporal_SD").items()}
    state |= {name: torch.empty(1, 4, 1, 1, 1, device="meta") for name in ("scale", "shift")}
    family = FAMILIES["open-sora-vae"]
    assert family.default(state) == "OpenSoraVAE_V1_2"
    with torch.device("meta"):
        model = constructor(VAES, "OpenSoraVAE_V1_2")()
    report = convert_weights(model, state, rule_for(model, family), "1.2")
    assert set(report.loaded) == set(state)
    assert not report.missing


def by_class_file(listed: str, frames: int) -> dict[str, Tensor]:
    """A file of DiT or Latte, with the names of its position tables."""
    state = {name: tensor for name, tensor in pixart_like(on_meta(listed)).items() if not name.startswith("pos_embed")}
    width = len(state["x_embedder.proj.bias"])
    state["pos_embed"] = torch.empty(1, 256, width, device="meta")
    return {**state, "temp_embed": torch.empty(1, frames, width, device="meta")} if frames > 1 else state


# Contents of the files that the docs and configs name.
FILES = {
    "PixArt-XL-2-256x256.pth": lambda: pixart_file("os1_0_PixArt-XL-2_1x256x256"),
    "PixArt-XL-2-512x512.pth": lambda: pixart_file("os1_0_PixArt-XL-2_1x512x512"),
    "PixArt-XL-2-1024-MS.pth": lambda: pixart_file("os1_0_PixArtMS-XL-2_1x1024"),
    "DiT-XL-2-256x256.pt": lambda: by_class_file("os1_0_DiT-XL-2_label1000_256", 1),
    "ucf101.pt": lambda: by_class_file("os1_0_Latte-XL-2_label101_16x256x256", 16),
    "OpenSora-v1-HQ-16x256x256.pth": lambda: on_meta("os1_0_STDiT-XL-2_16x256x256"),
    "OpenSora-v1-HQ-16x512x512.pth": lambda: on_meta("os1_0_STDiT-XL-2_16x512x512"),
    "OpenSora-STDiT-v3": lambda: on_meta("os1_2_STDiT3-XL-2"),
}
ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
CONFIGS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").rglob("*.py")))
COMMANDS = [
    re.sub(r"\\\s*", "", command)
    for command in [
        *re.findall(r"^python -m tools\.weights\.convert (.+)$", DOCS, flags=re.MULTILINE),
        *re.findall(r"python -m tools\.weights\.convert ([A-Z\w](?:[^`\n\\]|\\\n)+)", CONFIGS),
    ]
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_as_printed(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Commands on released files are valid; they run at full size on meta tensors and write nothing."""
    words = command.split()
    released = FILES[words[0]]()
    monkeypatch.setattr(convert, "read_weights", lambda path: released)
    monkeypatch.setattr(convert, "find_weights", Path)
    monkeypatch.setattr(convert, "config_next_to", lambda path: {})
    assert convert.main([*words, "--dry-run"]) == 0, capsys.readouterr().err
    assert "unexpected, left out: 0" in capsys.readouterr().out


def test_the_docs_name_every_family() -> None:
    assert COMMANDS
    assert all(f"`{family}`" in DOCS for family in FAMILIES)
