"""Schedulers against numbers recorded from the original implementations, with the toy denoiser of the specification."""

import math
from typing import Any

import pytest
import torch

from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.schedulers.timesteps import resolution_ratio, shift_timesteps
from tests.parity.golden import Golden, assert_parity, directories
from tests.parity.toy import Toy

TRAJECTORY = 1e-4


def cases_of(layout: str, section: str) -> list[Any]:
    """A parameter (golden directory, case name, case settings) for each case of `section` in each directory."""
    found = []
    for parameter in directories(lambda golden: golden.name.endswith(layout), what=layout):
        (golden,) = parameter.values
        if golden is None:
            return [parameter]
        settings = golden.config[section] if section else golden.config
        found += [
            pytest.param((golden, name, case), id=f"{golden.name}-{name}") for name, case in sorted(settings.items())
        ]
    return found


@pytest.mark.parametrize("golden", directories(lambda golden: golden.name.endswith("1_2_rflow"), what="1_2_rflow"))
def test_rflow_shifts_timesteps(golden: Golden) -> None:
    for row in golden.config["transform"]:
        ratio = resolution_ratio(row["num_frames"], row["h"], row["w"], row["scale"])
        shifted = shift_timesteps(torch.tensor(row["t"]), ratio, 1000)
        if any(math.isnan(value) for value in row["out"]):
            # The original counts no latent frames here, so that its own numbers are useless: all zero, then NaN.
            assert shifted.isfinite().all()
            image = resolution_ratio(1, row["h"], row["w"], row["scale"])
            assert torch.equal(shifted, shift_timesteps(torch.tensor(row["t"]), image, 1000))
        else:
            torch.testing.assert_close(shifted, torch.tensor(row["out"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", cases_of("1_2_rflow", "train"))
def test_rflow_training_loss(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(f"train_{name}")
    given = recorded.inputs
    scheduler = RectifiedFlow(**settings.get("kwargs", {}))
    toy = Toy(given["y"])
    if "torch_manual_seed" in settings:
        size = (settings["num_frames"], settings["height"], settings["width"])
        seeded = torch.Generator().manual_seed(settings["torch_manual_seed"])
        t_B = scheduler.draw_timesteps(len(given["x0"]), seeded, size)
        assert_parity(t_B, recorded.outputs["t"], what="t")
    else:
        t_B = given["t"]
    loss = scheduler.training_loss(toy, given["x0"], t_B=t_B, noise=given["noise"], x_mask_BT=given.get("mask"))
    x_t = scheduler.add_noise(given["x0"], given["noise"], t_B)  # recorded before masked frames become clean again
    assert_parity(x_t, recorded.outputs["x_t"], what="x_t")
    assert_parity(loss.loss_B, recorded.outputs["loss"], what="loss")


@pytest.mark.parametrize("case", cases_of("1_2_rflow", "sample"))
def test_rflow_sample(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(f"sample_{name}")
    given, wanted = recorded.inputs, recorded.outputs
    size = None
    if "height" in settings["additional"]:
        size = tuple(int(settings["additional"][key][0]) for key in ("num_frames", "height", "width"))
    scheduler = RectifiedFlow(num_sampling_steps=settings["steps"], **settings["kwargs"])
    toy = Toy(torch.cat([given["y"], given["y_null"]]))
    draws = iter(given.get("noise_draws", []))
    z = scheduler.sample(
        toy,
        given["z"],
        [],
        guidance_scale=settings["cfg_scale"],
        mask_BT=given.get("mask"),
        size=size,
        step_noise=lambda like: next(draws),
    )
    assert_parity(z, wanted["z"], TRAJECTORY, "z")
    assert_parity(torch.stack(toy.seen_x), wanted["model_x"], TRAJECTORY, "model_x")
    if "model_t" in wanted:
        assert_parity(torch.stack(toy.seen_t), wanted["model_t"], what="model_t")
    if "model_x_mask" in wanted:
        assert torch.equal(torch.stack(toy.seen_mask), wanted["model_x_mask"])
        assert next(draws, None) is None, "the original draws noise at every step"
