"""Schedulers against numbers recorded from the original implementations, with the toy denoiser of the specification."""

import math
from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.registry import SCHEDULERS, build
from opensora.schedulers.ddpm import IDDPM
from opensora.schedulers.dpm_solver import DPMSolver
from opensora.schedulers.epsilon_sampler import interpolate, log_ratio, sigma
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.schedulers.timesteps import Denoise, resolution_ratio, shift_timesteps
from tests.parity.golden import Golden, assert_parity, directories
from tests.parity.toy import Toy

TRAJECTORY = 1e-4


def named(layout: str) -> list[Any]:
    """Golden directories with `layout` in their name."""
    return directories(lambda golden: layout in golden.name, what=layout)


def cases_of(layout: str, section: str) -> list[Any]:
    """A parameter (golden directory, case name, case settings) for each case of `section` in each directory."""
    parameters = []
    for parameter in named(layout):
        (golden,) = parameter.values
        if golden is None:
            return [parameter]
        settings = golden.config[section] if section else golden.config
        parameters += [
            pytest.param((golden, name, case), id=f"{golden.name}-{name}") for name, case in sorted(settings.items())
        ]
    return parameters


def rflow(golden: Golden, **kwargs: Any) -> RectifiedFlow:
    """The scheduler of that release; use_oscillation_guidance of the recordings is two arguments here."""
    release: Any = "1.3" if golden.name.startswith("os1_3") else "1.2"
    oscillates = kwargs.pop("use_oscillation_guidance", False)
    return RectifiedFlow(release=release, oscillate_text=oscillates, oscillate_image=oscillates, **kwargs)


@pytest.mark.parametrize("golden", named("rflow"))
def test_rflow_shifts_timesteps(golden: Golden) -> None:
    for row in golden.config["transform"]:
        release = rflow(golden).release

        def ratio(num_frames: int, row: Any = row, release: Any = release, **kwargs: Any) -> float:
            return resolution_ratio(num_frames, row["h"], row["w"], row["scale"], release, **kwargs)

        shifted = shift_timesteps(torch.tensor(row["t"]), ratio(row["num_frames"]), 1000)
        if any(math.isnan(value) for value in row["out"]):
            # The original computes 0 latent frames here, so that its values are 0, then NaN.
            assert shifted.isfinite().all()
            timeless = ratio(row["num_frames"], scale_temporal=False)
            assert torch.equal(shifted, shift_timesteps(torch.tensor(row["t"]), timeless, 1000))
        else:
            torch.testing.assert_close(shifted, torch.tensor(row["out"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", cases_of("rflow", "train"))
def test_rflow_training_loss(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(f"train_{name}")
    inputs = recorded.inputs
    scheduler = rflow(golden, **settings.get("kwargs", {}))
    toy = Toy(inputs["y"])
    if "torch_manual_seed" in settings:
        size = (settings["num_frames"], settings["height"], settings["width"])
        seeded = torch.Generator().manual_seed(settings["torch_manual_seed"])
        t_B = scheduler.draw_timesteps(len(inputs["x0"]), seeded, size)
        assert_parity(t_B.double(), recorded.outputs["t"].double(), what="t")
    else:
        t_B = inputs["t"]
    loss = scheduler.training_loss(toy, inputs["x0"], t_B=t_B, noise=inputs["noise"], x_mask_BT=inputs.get("mask"))
    x_t = scheduler.add_noise(inputs["x0"], inputs["noise"], t_B)  # recorded before masked frames become clean again
    assert_parity(x_t, recorded.outputs["x_t"], what="x_t")
    assert_parity(loss.loss_B, recorded.outputs["loss"], what="loss")


def conditioned(toy: Toy, cond: torch.Tensor, cond_mask: torch.Tensor) -> Denoise:
    """The toy of recordings with conditioning frames: the condition is added to its latents."""
    return lambda x, t_B, x_mask=None: toy(x + 0.3 * cond * cond_mask, t_B, x_mask)


@pytest.mark.parametrize("case", cases_of("rflow", "sample"))
def test_rflow_sample(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(f"sample_{name}")
    inputs, outputs = recorded.inputs, recorded.outputs
    kwargs, sizes = dict(settings.get("kwargs", {})), settings.get("additional", settings)
    size = None
    if "num_frames" in sizes:
        values = [sizes[key] for key in ("num_frames", "height" if "height" in sizes else "h")]
        values.append(sizes["width" if "width" in sizes else "w"])
        size = tuple(int(value[0] if isinstance(value, list) else value) for value in values)
    if name == "flawfix":  # its settings were not recorded; they are those of the plain case with this option
        kwargs["guidance_rescale"] = 0.7
    scheduler = rflow(golden, num_sampling_steps=settings["steps"], **kwargs)
    image_scale = settings.get("image_cfg_scale")
    toy = Toy(torch.cat([inputs["y"], *[inputs["y_null"]] * (1 if image_scale is None else 2)]))
    denoise: Denoise = toy
    if image_scale is not None:
        cond = inputs["z_cond"] * inputs["z_cond_mask"]
        tripled = torch.cat([cond, cond, torch.zeros_like(cond)])
        assert scheduler.image_text_order == "cond,null,null"
        assert torch.equal(tripled, outputs["model_cond"])
        assert torch.equal(toy.y, outputs["model_y"])
        denoise = conditioned(toy, tripled, torch.cat([inputs["z_cond_mask"]] * 3))
    draws = iter(inputs.get("noise_draws", []))
    z = scheduler.sample(
        denoise,
        inputs["z"],
        [],
        guidance_scale=settings.get("cfg_scale", golden.config["sample"]["plain"]["cfg_scale"]),
        image_guidance_scale=image_scale,
        mask_BT=inputs.get("mask"),
        size=size,
        step_noise=lambda like: next(draws),
    )
    assert_parity(z, outputs["z"], TRAJECTORY, "z")
    if "model_x" in outputs:
        assert_parity(torch.stack(toy.seen_x), outputs["model_x"], TRAJECTORY, "model_x")
    if "model_x_last" in outputs:
        last = toy.seen_x[-1] - 0.3 * tripled * torch.cat([inputs["z_cond_mask"]] * 3)
        assert_parity(last, outputs["model_x_last"], TRAJECTORY, "model_x_last")
    if "model_t" in outputs:
        assert_parity(torch.stack(toy.seen_t), outputs["model_t"].float(), what="model_t")
    if "model_x_mask" in outputs:
        assert torch.equal(torch.stack(toy.seen_mask), outputs["model_x_mask"])
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
    # processors differ in the last bits of log and sqrt: a few units in the last place of the table's precision
    rtol = 1e-13 if golden.name.startswith("os1_0") else 1e-6
    for key, table in recorded.items():
        ours = getattr(tables, key.removeprefix(f"{name}."))
        torch.testing.assert_close(ours.double(), table, rtol=rtol, atol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("case", cases_of("iddpm_train", ""))
def test_iddpm_training_loss(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(name)
    inputs, outputs = recorded.inputs, recorded.outputs
    scheduler = iddpm(golden, **settings["kwargs"])
    if "failed" in settings:  # the error of the original was recorded instead of the terms
        assert "mask not supported for KL loss" in settings["failed"]
        mask = torch.ones(inputs["x0"].shape[0], inputs["x0"].shape[2], dtype=torch.bool)
        with pytest.raises(ConfigError, match="use_kl"):
            scheduler.training_loss(
                Toy(inputs["y"]), inputs["x0"], t_B=inputs["t"], noise=inputs["noise"], x_mask_BT=mask
            )
    toy = Toy(inputs["y"], channels=None if scheduler.learn_sigma else inputs["x0"].shape[1])
    loss = scheduler.training_loss(
        toy, inputs["x0"], t_B=inputs["t"], noise=inputs["noise"], x_mask_BT=inputs.get("mask")
    )
    assert_parity(loss.loss_B, outputs["loss"], what="loss")
    assert {*loss.terms, "loss"} == set(settings.get("terms", ["loss"]))
    for term, value in loss.terms.items():
        assert_parity(value, outputs[term], what=term)
    if "x_t" in outputs:
        assert_parity(toy.seen_x[0], outputs["x_t"], what="x_t")


@pytest.mark.parametrize("case", cases_of("iddpm_sample", ""))
def test_iddpm_sample(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(name)
    inputs, outputs = recorded.inputs, recorded.outputs
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
    start = inputs["z"] if "z" in inputs else inputs["x"]
    toy = Toy(torch.cat([inputs["y"], inputs["y_null"]]) if "y_null" in inputs else inputs["y"])
    # The original draws noise for the doubled batch and keeps only the first half.
    draws = iter(inputs["noise_draws"] if "noise_draws" in inputs else inputs["noise_steps"])
    steps = list(
        scheduler.iter_latents(
            toy, start, lambda like: next(draws)[: len(like)], settings.get("cfg_scale"), inputs.get("mask")
        )
    )
    if "pred_xstart" in outputs:
        assert_parity(torch.stack([x for x, _ in steps]), outputs["samples"], TRAJECTORY, "samples")
        assert_parity(torch.stack([x0 for _, x0 in steps]), outputs["pred_xstart"], TRAJECTORY, "pred_xstart")
    else:
        assert_parity(steps[-1][0], outputs["samples"], TRAJECTORY, "samples")
    if "model_t" in outputs:
        assert torch.equal(torch.stack(toy.seen_t), outputs["model_t"].float())
    for key, place in (("model_x_0", 0), ("model_x_last", -1)):
        if key in outputs:
            # The original overwrites the second half of the batch before it calls the model.
            assert_parity(toy.seen_x[place], outputs[key], TRAJECTORY, key)
    if "model_x" in outputs:
        assert_parity(torch.stack(toy.seen_x), outputs["model_x"], TRAJECTORY, "model_x")
        assert torch.equal(torch.stack(toy.seen_mask), outputs["model_x_mask"])


@pytest.mark.parametrize("golden", named("dpms"))
def test_dpm_solver_schedule(golden: Golden) -> None:
    recorded = golden.tensors("schedule")
    steps = DPMSolver().num_timesteps
    log_alpha = interpolate(DPMSolver().log_alpha, recorded["t"].double() * steps - 1)
    assert_parity(log_alpha.float(), recorded["log_alpha"], what="log_alpha")
    assert_parity(log_alpha.exp().float(), recorded["alpha"], what="alpha")
    assert_parity(sigma(log_alpha).float(), recorded["sigma"], what="sigma")
    assert_parity(log_ratio(log_alpha).float(), recorded["lambda"], 1e-4, what="lambda")


@pytest.mark.parametrize("case", cases_of("dpms", ""))
def test_dpm_solver_sample(case: tuple[Golden, str, dict[str, Any]]) -> None:
    golden, name, settings = case
    recorded = golden.case(name)
    inputs, outputs = recorded.inputs, recorded.outputs
    steps, _, order = name.removeprefix("steps").partition("_order")
    scheduler = DPMSolver(
        num_sampling_steps=int(settings.get("num_sampling_steps", steps)), order=int(settings.get("order", order))
    )
    assert scheduler.text_order == "null,cond"
    toy = Toy(torch.cat([inputs["y_null"], inputs["y"]]))
    trajectory: list[torch.Tensor] = [inputs["z"]]
    iter_latents = scheduler.iter_latents

    def keep(*args: Any) -> Any:
        for latents in iter_latents(*args):
            trajectory.append(latents)
            yield latents

    scheduler.iter_latents = keep  # type: ignore[method-assign]
    z = scheduler.sample(toy, inputs["z"], [], guidance_scale=settings["cfg_scale"])
    assert_parity(z, outputs["final" if "final" in outputs else ""], TRAJECTORY, "final")
    if "intermediates" in outputs:
        assert_parity(torch.stack(trajectory), outputs["intermediates"], TRAJECTORY, "intermediates")
        assert_parity(torch.stack(toy.seen_t), outputs["model_t"], what="model_t")
        assert len(toy.seen_t) == settings["n_model_calls"]


def sampled_with_diffusers() -> list[Any]:
    """A parameter (golden directory, settings) for each recorded sampler of diffusers."""
    recordings = directories(
        lambda golden: golden.has("sampling") and "sampling" in golden.config, what="diffusers samplers"
    )
    if recordings[0].values[0] is None:
        return recordings
    return [
        pytest.param((golden, entry), id=f"{golden.name}-{entry['name']}")
        for (golden,) in (parameter.values for parameter in recordings)
        for entry in golden.config["sampling"]["schedulers"]
    ]


@pytest.mark.parametrize("case", sampled_with_diffusers())
def test_diffusers_sampler_calls_the_model_at_recorded_times_and_scale(case: tuple[Golden, dict[str, Any]]) -> None:
    """The trajectories need the denoiser with which they were recorded; test_latte_t2v.py tests them."""
    golden, entry = case
    recorded = golden.tensors("sampling")
    scheduler = build(SCHEDULERS, {"type": entry["name"]}, num_sampling_steps=entry["steps"])
    toy = Toy(torch.zeros(1, 1, 1, 1))
    scheduler.sample(toy, recorded["latents"], [torch.Generator()])
    assert_parity(torch.cat(toy.seen_t).double(), recorded[f"{entry['name']}.timesteps"], what="timesteps")
    assert len(toy.seen_t) == scheduler.num_model_calls == entry["n_model_calls"]
    # The latents are scaled by the noise of the first step, and then to the x_t of the training process.
    sigma = entry["init_noise_sigma"]
    share = 1.0 if sigma == 1 else sigma / math.sqrt(sigma**2 + 1)
    assert_parity(toy.seen_x[0], recorded["latents"] * share, what="first x")


@pytest.mark.parametrize(
    "golden", directories(lambda golden: golden.has("diffusion_loss"), what="a diffusion loss of Open-Sora-Plan")
)
def test_iddpm_is_the_process_of_open_sora_plan(golden: Golden) -> None:
    """Tables and noisy latents; test_latte_t2v.py tests the loss, which needs its denoiser."""
    recorded = golden.tensors("diffusion_loss")
    scheduler = IDDPM()
    for key in (key for key in recorded if key.startswith("table.")):
        torch.testing.assert_close(
            getattr(scheduler.training_tables, key.removeprefix("table.")), recorded[key], rtol=1e-12, atol=0
        )
    for key in (key for key in recorded if key.startswith("x_t_")):
        t_B = recorded[f"{key.removeprefix('x_t_')}.t"]
        assert_parity(scheduler.add_noise(recorded["x_start"], recorded["noise"], t_B), recorded[key], what=key)
