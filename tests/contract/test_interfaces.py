"""Registered components have the attributes and methods that opensora/interfaces.py lists for their kind."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.errors import WeightsError
from opensora.interfaces import Autoencoder, Denoiser, Scheduler, TextEncoder
from opensora.models.weights import save_weights
from opensora.registry import MODELS, SCHEDULERS, TEXT_ENCODERS, VAES, build, class_of, names
from tests.contract.test_models import SMALL_VAES, small

FORWARD = ["x", "timestep", "y", "mask", "x_mask", "drop_B"]
INHERITED = {"decode_windows", "holds_frames"}  # methods of the base classes that subclasses may keep


def members(interface: type) -> set[str]:
    """Public attributes and methods of an interface, without those of nn.Module."""
    public = {name for name in (*vars(interface), *interface.__annotations__) if not name.startswith("_")}
    return public - {"forward"}


def assert_has(component: Any, interface: type) -> None:
    missing = sorted(name for name in members(interface) if not hasattr(component, name))
    assert not missing, f"{type(component).__name__} lacks {missing} of {interface.__name__}"


def assert_overrides(cls: type, interface: type) -> None:
    methods = {name for name, value in vars(interface).items() if name[0] != "_" and callable(value)}
    kept = sorted(name for name in methods - INHERITED if getattr(cls, name) is getattr(interface, name))
    assert not kept, f"{cls.__name__} does not define {kept} of {interface.__name__}"


@pytest.mark.parametrize("name", sorted({class_of(MODELS, name).__name__ for name in names(MODELS)}))
def test_denoiser(name: str) -> None:
    with torch.device("meta"):
        model = build(MODELS, small(name))
    assert isinstance(model, Denoiser)
    assert_has(model, Denoiser)
    assert_overrides(type(model), Denoiser)
    parameters = list(inspect.signature(model.forward).parameters)
    assert parameters[: len(FORWARD)] == FORWARD
    conditions = {*model.size_conditions, *(["cond", "cond_mask", "mask_index", "y_null"] if model.conditioned else [])}
    assert conditions <= set(parameters)


@pytest.mark.parametrize("name", SMALL_VAES)
def test_an_autoencoder_codes_nothing_before_its_weights_are_loaded(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        saved = build(VAES, {"type": name, **SMALL_VAES[name]})
    save_weights(tmp_path, saved.state_dict(), saved.config)
    vae = build(VAES, {"type": name, "from_pretrained": str(tmp_path)})
    clip = torch.zeros(1, 3, 5, 16, 16)
    latents = torch.zeros(1, vae.latent_channels, *vae.latent_size((5, 16, 16)))
    for code, value in ((vae.encode, clip), (vae.decode, latents), (vae, clip)):
        with pytest.raises(WeightsError, match=f"the weights of {tmp_path} are not loaded; call load"):
            code(value)
    vae.load()
    assert torch.equal(vae.decode(latents), saved.decode(latents))


@pytest.mark.parametrize("name", SMALL_VAES)
def test_autoencoder(name: str) -> None:
    with torch.device("meta"):
        model = build(VAES, {"type": name, **SMALL_VAES[name]})
    assert isinstance(model, Autoencoder)
    assert_has(model, Autoencoder)
    assert_overrides(type(model), Autoencoder)
    parameters = list(inspect.signature(model.forward).parameters.values())
    assert [each.name for each in parameters[:2]] == ["x", "rngs"]
    assert all(each.default is not each.empty for each in parameters[2:])


@pytest.mark.parametrize("name", names(TEXT_ENCODERS))
def test_text_encoder(name: str) -> None:
    assert_has(class_of(TEXT_ENCODERS, name), TextEncoder)


def test_schedulers() -> None:
    for name in names(SCHEDULERS):
        scheduler = build(SCHEDULERS, {"type": name})
        assert_has(scheduler, Scheduler)
        keywords = set(inspect.signature(scheduler.sample).parameters)
        assert {"guidance_scale", "size", "progress"} <= keywords, name
        assert ("image_guidance_scale" in keywords) == bool(scheduler.image_text_order), name


def test_a_denoiser_without_blocks_fails() -> None:
    class Incomplete(Denoiser):
        def null_text(self, n: int) -> None: ...

    with pytest.raises(AssertionError, match=r"checkpoint_blocks.*embed_text"):
        assert_overrides(Incomplete, Denoiser)
    with pytest.raises(AssertionError, match="input_size"):
        assert_has(Incomplete(), Denoiser)
