"""The run that is written with converted weights can be built: every part exists and takes its arguments."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.config import check_component, load
from opensora.models.conversion.families import FAMILIES
from opensora.models.conversion.released_configs import RELEASED_RUNS, clip_size, released_run
from opensora.registry import SCHEDULERS, TEXT_ENCODERS, VAES, build, constructor
from opensora.schema import SampleRun

PARTS = {"vae": VAES, "text_encoder": TEXT_ENCODERS, "scheduler": SCHEDULERS}
DENOISERS = sorted({target for family in FAMILIES.values() if family.registry == "model" for target in family.rules})


@pytest.mark.parametrize("name", RELEASED_RUNS)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_built_as_written(name: str, part: str) -> None:
    check_component(PARTS[part], RELEASED_RUNS[name][part], part, lambda key: name)


@pytest.mark.parametrize("target", DENOISERS)
def test_every_denoiser_has_a_recipe(target: str) -> None:
    run = released_run(target, "stdit", {"model_max_length": 77})
    assert {*PARTS, "fps"} <= set(run)
    if run["text_encoder"]["type"] == "t5":
        assert run["text_encoder"]["model_max_length"] == 77
        assert "model_max_length" not in RELEASED_RUNS[target]["text_encoder"]  # the table itself is untouched


@pytest.mark.parametrize("target", ["DiT", "Latte"])
def test_classes_are_counted(target: str) -> None:
    text = released_run(target, "dit", {"condition": "label_101", "model_max_length": 1})["text_encoder"]
    assert text == {"type": "classes", "num_classes": 101}
    check_component(TEXT_ENCODERS, text, "text_encoder", lambda key: target)
    assert (
        released_run(target, "dit", {"condition": "text", "model_max_length": 1})["text_encoder"]
        == RELEASED_RUNS[target]["text_encoder"]
    )


CONFIGS = Path(__file__).resolve().parents[4] / "configs"
SAMPLED = {
    "PixArt": "pixart/sample/1x512x512.py",
    "PixArtMS": "pixart/sample/1x1024MS.py",
    "DiT": "dit/sample/1x256x256-class.py",
    "Latte": "latte/sample/16x256x256-class.py",
    "STDiT2": "stdit2/sample/16x240x424.py",
    "STDiT3": "stdit3/sample/51x240x424.py",
    "STDiT3 of 16 channels": "stdit3/sample/49x240x416.py",
    "LatteT2V": "latte_t2v/sample/65x512x512.py",
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampling_configs_say_the_same(name: str) -> None:
    """A folder that a conversion wrote is sampled alike with and without the config of the release."""

    def complete(scheduler: dict[str, Any]) -> dict[str, Any]:
        accepted = inspect.signature(constructor(SCHEDULERS, scheduler["type"])).parameters
        return {**{key: value.default for key, value in accepted.items()}, **scheduler}

    run, recipe = load(str(CONFIGS / SAMPLED[name]), [], SampleRun).run, RELEASED_RUNS[name]
    assert run.scheduler is not None
    assert complete(run.scheduler) == complete(recipe["scheduler"])
    assert run.fps == recipe["fps"]
    if "num_frames" in recipe:
        assert (run.num_frames, list(run.image_size or [])) == (recipe["num_frames"], recipe["image_size"])


def test_families_and_channels_that_were_trained_otherwise() -> None:
    assert released_run("PixArt", "pixart-sigma", {})["vae"]["scaling_factor"] == 0.13025
    assert released_run("PixArt", "pixart-alpha", {})["vae"]["scaling_factor"] == 0.18215
    assert released_run("STDiT", "pixart-sigma", {})["vae"]["scaling_factor"] == 0.18215  # as STDiT is trained
    assert released_run("STDiT3", "stdit3", {"in_channels": 4})["vae"]["type"] == "OpenSoraVAE_V1_2"
    assert released_run("STDiT3", "stdit3", {"in_channels": 16})["vae"]["type"] == "OpenSoraVAE_V1_3"
    assert released_run("CausalVAEModel", "sd-vae", {}) == {}


def test_clip_of_latents() -> None:
    assert clip_size([3, 4, 5], (4, 8, 8)) == {"num_frames": 9, "image_size": [32, 40]}
    assert clip_size([16, 32, 32], (1, 8, 8)) == {"num_frames": 16, "image_size": [256, 256]}


@pytest.mark.parametrize("name", RELEASED_RUNS)
def test_latents_are_scaled_as_written(name: str) -> None:
    """The scale stands in the record and is the one that the autoencoder built from it uses."""
    vae = {key: value for key, value in RELEASED_RUNS[name]["vae"].items() if key != "from_pretrained"}
    if vae["type"] == "OpenSoraVAE_V1_2":  # its scale lies in buffers, which have no values on meta
        spatial = {"config": {"block_out_channels": [4], "norm_num_groups": 2}}
        built = build(VAES, {**vae, "spatial": spatial, "temporal": {"filters": 4, "num_groups": 2}})
    else:
        with torch.device("meta"):
            built = build(VAES, vae)
    configured = [key for key in ("scaling_factor", "shift", "scale", "latent_shift", "latent_scale") if key in vae]
    assert configured
    for key in configured:
        meant = torch.as_tensor(vae[key])
        used = getattr(built, key, None)
        if used is None:
            used = getattr(built.latents, {"scaling_factor": "factor"}.get(key, key.removeprefix("latent_")))
        torch.testing.assert_close(torch.as_tensor(used).flatten(), meant.flatten())
