"""What is written beside converted weights can be built: every part exists and takes the arguments it is given."""

import pytest

from opensora.config import check_component
from opensora.models.conversion.families import FAMILIES
from opensora.models.conversion.recipes import RECIPES, clip_size, run_for
from opensora.registry import SCHEDULERS, TEXT_ENCODERS, VAES

PARTS = {"vae": VAES, "text_encoder": TEXT_ENCODERS, "scheduler": SCHEDULERS}
DENOISERS = sorted({target for family in FAMILIES.values() if family.registry == "model" for target in family.rules})


@pytest.mark.parametrize(
    ("name", "part"), [(n, part) for n, recipe in RECIPES.items() for part in PARTS if part in recipe]
)
def test_every_part_is_built_as_written(name: str, part: str) -> None:
    check_component(PARTS[part], RECIPES[name][part], part, lambda key: name)


@pytest.mark.parametrize("target", DENOISERS)
def test_every_denoiser_has_a_recipe(target: str) -> None:
    run = run_for(target, "stdit", {"model_max_length": 77})
    assert {"vae", "scheduler", "fps"} <= set(run)
    if target not in ("DiT", "Latte"):  # told by class
        assert run["text_encoder"]["model_max_length"] == 77
        assert "model_max_length" not in RECIPES[target]["text_encoder"]  # the table itself is untouched


def test_families_and_channels_that_were_trained_otherwise() -> None:
    assert run_for("PixArt", "pixart-sigma", {})["vae"]["scaling_factor"] == 0.13025
    assert run_for("PixArt", "pixart-alpha", {})["vae"]["scaling_factor"] == 0.18215
    assert run_for("STDiT", "pixart-sigma", {})["vae"]["scaling_factor"] == 0.18215  # as STDiT is trained
    assert run_for("STDiT3", "stdit3", {"in_channels": 4})["vae"]["type"] == "OpenSoraVAE_V1_2"
    assert run_for("STDiT3", "stdit3", {"in_channels": 16})["vae"]["type"] == "OpenSoraVAE_V1_3"
    assert run_for("CausalVAEModel", "sd-vae", {}) == {}


def test_clip_of_latents() -> None:
    assert clip_size([3, 4, 5], (4, 8, 8)) == {"num_frames": 9, "image_size": [32, 40]}
    assert clip_size([16, 32, 32], (1, 8, 8)) == {"num_frames": 16, "image_size": [256, 256]}
