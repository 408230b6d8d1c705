"""The samplers of diffusers: what this package adds to them. Their numbers are compared in tests/parity."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError
from opensora.registry import SCHEDULERS, build
from opensora.rng import Draw, generator
from opensora.schedulers.ddpm import IDDPM
from opensora.schedulers.diffusers_samplers import NAMES

SHAPE = (2, 4, 2, 3, 3)


def sampler(name: str, **arguments: Any) -> Any:
    return build(SCHEDULERS, {"type": name, "num_sampling_steps": 6, **arguments})


def clip(name: str = "clip") -> Tensor:
    return torch.randn(SHAPE, generator=generator(0, name))


def rngs() -> list[Generator]:
    return [generator(0, "sample", i) for i in range(2)]


def half(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
    return 0.5 * x


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_clean_latents_are_clamped_unless_switched_off(name: str) -> None:
    def nothing(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    assert sampler(name).sample(nothing, clip(), rngs()).abs().max() <= 1
    assert sampler(name, config=dict(clip_sample=False)).sample(nothing, clip(), rngs()).abs().max() > 50


def test_ddim_is_the_ddim_of_iddpm_where_the_grid_is_the_same() -> None:
    theirs = sampler("DDIM", num_sampling_steps=5, config=dict(clip_sample=False))
    ours = IDDPM(timestep_respacing="ddim5", sampler="ddim", learn_sigma=False)
    assert ours.sampling_tables.timestep_map.tolist() == [0, 200, 400, 600, 800]
    torch.testing.assert_close(theirs.sample(half, clip(), []), ours.sample(half, clip(), []), rtol=1e-4, atol=1e-5)


def test_null_text_comes_first_and_the_second_half_is_dropped() -> None:
    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        halves = torch.cat([0.1 * x[:2], 0.3 * x[2:]])
        return torch.cat([halves, torch.full_like(halves, torch.nan)], dim=1)

    scheduler = sampler("EulerDiscrete")
    assert scheduler.text_order == "null,cond"
    made = scheduler.sample(denoise, clip(), [], guidance_scale=3.0)
    torch.testing.assert_close(made, scheduler.sample(lambda x, t_B, x_mask=None: 0.7 * x, clip(), []))


@pytest.mark.parametrize("name", ["DDPM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete"])
def test_noise_comes_from_each_samples_generator(name: str) -> None:
    scheduler, start = sampler(name), clip()[:1].expand(SHAPE)
    made = scheduler.sample(half, start, rngs())
    assert not torch.isclose(made[0], made[1]).any()
    same = scheduler.sample(half, start, [generator(0, "same"), generator(0, "same")])
    assert torch.equal(same[0], same[1])
    torch.manual_seed(1)  # nothing comes from the global state
    assert torch.equal(scheduler.sample(half, start, rngs()), made)


def test_kdpm2_ancestral_draws_at_every_call() -> None:
    """As the diffusers that released weights were sampled with, so that a seed gives the same video."""
    scheduler, rng = sampler("KDPM2AncestralDiscrete"), generator(0, "counted")
    scheduler.sample(half, clip()[:1], [rng])
    again = generator(0, "counted")
    for _ in range(scheduler.num_model_calls):
        torch.randn((1, *SHAPE[1:]), generator=again)
    assert torch.equal(rng.get_state(), again.get_state())


def test_eta_adds_noise_to_ddim() -> None:
    plain, noisy = sampler("DDIM"), sampler("DDIM", eta=1.0)
    assert not torch.isclose(plain.sample(half, clip(), rngs()), noisy.sample(half, clip(), rngs())).all()
    with pytest.raises(ConfigError, match="only with DDIM"):
        sampler("PNDM", eta=0.5)


def test_config_reaches_diffusers() -> None:
    timesteps: list[float] = []

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        timesteps.append(t_B[0].item())
        return half(x, t_B)

    sampler("DDIM", config=dict(timestep_spacing="trailing")).sample(denoise, clip(), [])
    assert timesteps == [999, 832, 666, 499, 332, 166]


@pytest.mark.parametrize("wrong", ["clip_sampl", "num_inference_steps"])
def test_unknown_config_keys_are_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=rf"scheduler.config.{wrong}: .*nearest"):
        sampler("DDIM", config={wrong: 1})


def test_config_that_diffusers_refuses_is_error() -> None:
    with pytest.raises(ConfigError, match=r"PNDMScheduler.* 2 "):
        sampler("PNDM", num_sampling_steps=2)
    with pytest.raises(ConfigError, match="variance_type"):
        sampler("DDPM", config=dict(variance_type="learned_range"))
    with pytest.raises(ConfigError, match=r"num_sampling_steps.*0"):
        sampler("DDPM", num_sampling_steps=0)


BEGIN_AT_ZERO = {"DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete"}


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"PNDM"}))
def test_one_step_begins_in_noise_or_is_refused(name: str) -> None:
    """Evenly spaced from 0, a single timestep is 0: the noise would be taken for clean latents and come out as it went in."""
    begins: list[float] = []

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        begins.append(float(t_B[0]))
        return half(x, t_B)

    if name in BEGIN_AT_ZERO:
        with pytest.raises(ConfigError, match=r"num_sampling_steps.* 1 .*timestep_spacing=.trailing."):
            sampler(name, num_sampling_steps=1)
    config = dict(timestep_spacing="trailing") if name in BEGIN_AT_ZERO else None
    scheduler = sampler(name, num_sampling_steps=1, config=config)
    made = scheduler.sample(denoise, clip(), rngs())
    assert begins[0] == 999
    assert made.isfinite().all()
    assert not torch.allclose(made, clip(), atol=0.1)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("HeunDiscrete", None),
        ("DDIM", dict(prediction_type="v_prediction")),
        ("DDIM", dict(beta_schedule="scaled_linear")),
        ("DDIM", dict(num_train_timesteps=500)),
    ],
)
def test_training_another_process_than_is_sampled_is_refused(name: str, config: dict | None) -> None:
    scheduler = sampler(name, config=config)
    with pytest.raises(ConfigError, match="process"):
        scheduler.training_loss(half, clip(), [Draw(0, 0, 0), Draw(0, 0, 1)])


def test_training_is_iddpms() -> None:
    draws = [Draw(0, 0, 0), Draw(0, 0, 1)]
    for schedule in ("linear", "squaredcos_cap_v2"):
        ours = sampler("DEISMultistep", learn_sigma=False, noise_schedule=schedule)
        theirs = IDDPM(learn_sigma=False, noise_schedule=schedule)
        mask, valid = torch.tensor([[True, False], [True, True]]), (clip()[:, 0] > 0).float()
        for options in ({}, dict(x_mask_BT=mask), dict(valid_BTHW=valid)):
            loss = ours.training_loss(half, clip(), draws, **options)
            assert torch.equal(loss.loss_B, theirs.training_loss(half, clip(), draws, **options).loss_B)


def test_steps_are_counted_and_not_calls() -> None:
    reports: list[tuple[int, int]] = []
    scheduler = sampler("HeunDiscrete", num_sampling_steps=3)
    steps_done: list[int] = []

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        steps_done.append(len(reports))
        return half(x, t_B)

    scheduler.sample(denoise, clip(), [], progress=lambda *now: reports.append(now))
    assert reports == [(1, 3), (2, 3), (3, 3)]
    assert steps_done == [0, 0, 1, 1, 2]
