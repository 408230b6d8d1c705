"""Schedulers against numbers recorded from the original implementations, with the toy denoiser of the specification."""

import math
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.schedulers.ddpm import IDDPM
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.schedulers.timesteps import resolution_ratio, shift_timesteps
from tests.parity.golden import Golden, assert_parity, directories
from tests.parity.toy import Toy

TRAJECTORY = 1e-4


def named(layout: str) -> list[Any]:
    """Golden directories with `layout` in their name."""
    return directories(lambda golden: layout in golden.name, what=layout)


def cases_of(layout: str, section: str) -> list[Any]:
    """A parameter (golden directory, case name, case settings) for each case of `section` in each directory."""
    found = []
    for parameter in named(layout):
        (golden,) = parameter.values
        if golden is None:
            return [parameter]
        settings = golden.config[section] if section else golden.config
        found += [
            pytest.param((golden, name, case), id=f"{golden.name}-{name}") for name, case in sorted(settings.items())
        ]
    return found


@pytest.mark.parametrize("golden", named("os1_2_rflow"))
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


@pytest.mark.parametrize("case", cases_of("os1_2_rflow", "train"))
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


@pytest.mark.parametrize("case", cases_of("os1_2_rflow", "sample"))
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


def iddpm(golden: Golden, **kwargs: Any) -> IDDPM:
    """The scheduler of that release: 1.0 computes its tables in float64, 1.1 in float32."""
    table_dtype = "float64" if golden.name.startswith("os1_0") else "float32"
    return IDDPM(table_dtype=table_dtype, **kwargs)


@pytest.mark.parametrize("case", cases_of("iddpm_tables", "respacing"))
def test_iddpm_tables(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    tables = iddpm(golden, **settings["kwargs"]).sampling_tables
    assert tables.timestep_map.tolist() == settings["timestep_map"]
    assert tables.num_timesteps == settings["num_timesteps"]
    recorded = {key: table for key, table in golden.tensors("tables").items() if key.startswith(f"{name}.")}
    assert recorded
    for key, table in recorded.items():
        ours = getattr(tables, key.removeprefix(f"{name}."))
        assert torch.equal(ours.double(), table), f"{key}: differs by {(ours - table).abs().max():.3g}"


@pytest.mark.parametrize("case", cases_of("iddpm_train", ""))
def test_iddpm_training_loss(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(name)
    given, wanted = recorded.inputs, recorded.outputs
    scheduler = iddpm(golden, **settings["kwargs"])
    if "failed" in settings:  # the original's error was recorded in place of the terms; what it had done before stands
        assert "mask not supported for KL loss" in settings["failed"]
        mask = torch.ones(given["x0"].shape[0], given["x0"].shape[2], dtype=torch.bool)
        with pytest.raises(ConfigError, match="use_kl"):
            scheduler.training_loss(Toy(given["y"]), given["x0"], t_B=given["t"], noise=given["noise"], x_mask_BT=mask)
    toy = Toy(given["y"], channels=None if scheduler.learn_sigma else given["x0"].shape[1])
    loss = scheduler.training_loss(toy, given["x0"], t_B=given["t"], noise=given["noise"], x_mask_BT=given.get("mask"))
    assert_parity(loss.loss_B, wanted["loss"], what="loss")
    assert {*loss.terms, "loss"} == set(settings.get("terms", ["loss"]))
    for term, value in loss.terms.items():
        assert_parity(value, wanted[term], what=term)
    if "x_t" in wanted:
        assert_parity(toy.seen_x[0], wanted["x_t"], what="x_t")


@pytest.mark.parametrize("case", cases_of("iddpm_sample", ""))
def test_iddpm_sample(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(name)
    given, wanted = recorded.inputs, recorded.outputs
    options = dict(settings.get("kwargs", {}))
    if "cfg_channel" in settings:
        options["cfg_channel"] = 3 if isinstance(settings["cfg_channel"], str) else settings["cfg_channel"]
    elif "cfg_scale" in settings:
        options["cfg_channel"] = None
    if name.startswith("ddim"):
        options["sampler"] = "ddim"
    scheduler = iddpm(golden, num_sampling_steps=settings["steps"], **options)
    if "timestep_map" in settings:
        assert scheduler.sampling_tables.timestep_map.tolist() == settings["timestep_map"]
    start = given["z"] if "z" in given else given["x"]
    toy = Toy(torch.cat([given["y"], given["y_null"]]) if "y_null" in given else given["y"])
    # The original draws for the doubled batch and lets only the first half live on.
    draws = iter(given["noise_draws"] if "noise_draws" in given else given["noise_steps"])
    steps = list(
        scheduler.trajectory(
            toy, start, lambda like: next(draws)[: len(like)], settings.get("cfg_scale"), given.get("mask")
        )
    )
    if "pred_xstart" in wanted:
        assert_parity(torch.stack([x for x, _ in steps]), wanted["samples"], TRAJECTORY, "samples")
        assert_parity(torch.stack([x0 for _, x0 in steps]), wanted["pred_xstart"], TRAJECTORY, "pred_xstart")
    else:
        assert_parity(steps[-1][0], wanted["samples"], TRAJECTORY, "samples")
    if "model_t" in wanted:
        assert torch.equal(torch.stack(toy.seen_t), wanted["model_t"].float())
    for key, place in (("model_x_0", 0), ("model_x_last", -1)):
        if key in wanted:
            # The original leaves the second half to itself between steps and overwrites it before the model.
            assert_parity(toy.seen_x[place], wanted[key], TRAJECTORY, key)
    if "model_x" in wanted:
        assert_parity(torch.stack(toy.seen_x), wanted["model_x"], TRAJECTORY, "model_x")
        assert torch.equal(torch.stack(toy.seen_mask), wanted["model_x_mask"])
