import math

import pytest
import torch

from opensora.errors import ConfigError
from opensora.rng import Draw, generator
from opensora.schedulers.ddpm import IDDPM

SHAPE = (2, 4, 3, 4, 4)


def clip(name: str = "clip") -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(0, name))


def two_halves(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
    return torch.cat([0.5 * x, torch.tanh(x)], dim=1)


def test_sampling_steps_leave_training_timesteps() -> None:
    scheduler = IDDPM(num_sampling_steps=10)
    assert scheduler.training_tables.num_timesteps == 1000
    assert scheduler.sampling_tables.num_timesteps == scheduler.num_sampling_steps == 10
    timesteps = scheduler.training_loss(two_halves, clip(), [Draw(0, 0, 0), Draw(0, 0, 1)]).t_B
    assert not set(timesteps.int().tolist()) & set(scheduler.sampling_tables.timestep_map.tolist())


def test_respacing_shortens_both() -> None:
    scheduler = IDDPM(timestep_respacing="ddim10")
    kept = list(range(0, 1000, 100))
    assert scheduler.training_tables.timestep_map.tolist() == kept
    assert scheduler.sampling_tables.timestep_map.tolist() == kept
    loss = scheduler.training_loss(two_halves, clip(), [Draw(0, 0, sample_id) for sample_id in range(2)])
    assert set(loss.t_B.int().tolist()) <= set(kept)


def test_empty_respacing_means_all() -> None:
    assert IDDPM(timestep_respacing="").num_sampling_steps == 1000


def test_variance_lies_between_its_bounds() -> None:
    """Values -1 and 1 are the posterior's variance and beta."""
    scheduler = IDDPM(num_sampling_steps=20)
    tables, x, index = scheduler.sampling_tables, clip(), torch.tensor([3, 15])
    for value, table in [(-1.0, tables.posterior_log_variance_clipped), (1.0, torch.log(tables.betas))]:
        got = scheduler._log_variance(tables, x, index, torch.full(SHAPE, value))
        torch.testing.assert_close(got[:, 0, 0, 0, 0], table[index].float())


def test_bound_trains_the_variance_only() -> None:
    x0, noise = clip("x0"), clip("noise")
    answer = torch.zeros(SHAPE, requires_grad=True)
    values = torch.zeros(SHAPE, requires_grad=True)
    loss = IDDPM().training_loss(
        lambda x, t_B, x_mask=None: torch.cat([answer, values], dim=1), x0, t_B=torch.tensor([0, 500]), noise=noise
    )
    (gradient,) = torch.autograd.grad(loss.loss_B.sum(), answer, retain_graph=True)
    torch.testing.assert_close(gradient, -2 * noise / noise[0].numel())
    (gradient,) = torch.autograd.grad(loss.loss_B.sum(), values)
    assert (gradient.abs().flatten(1).sum(1) > 0).all()


def test_bound_is_zero_for_true_noise_and_posterior_variance() -> None:
    x0, noise = clip("x0"), clip("noise")
    smallest = torch.cat([noise, -torch.ones(SHAPE)], dim=1)
    loss = IDDPM(use_kl=True).training_loss(
        lambda x, t_B, x_mask=None: smallest, x0, t_B=torch.tensor([200, 900]), noise=noise
    )
    torch.testing.assert_close(loss.loss_B, torch.zeros(2), rtol=0, atol=1e-3)


def test_first_timestep_is_scored_in_bits() -> None:
    x0 = torch.zeros(SHAPE)
    scheduler = IDDPM(use_kl=True, predict_xstart=True, learn_sigma=False, sigma_small=True)
    loss = scheduler.training_loss(lambda x, t_B, x_mask=None: x0, x0, t_B=torch.zeros(2), noise=clip())
    variance = scheduler.training_tables.posterior_log_variance_clipped[0].exp().item()
    inside = math.erf(1 / 255 / math.sqrt(2 * variance))
    torch.testing.assert_close(loss.loss_B, torch.full((2,), -1000 * math.log2(inside)), rtol=0.02, atol=0.05)


def test_clip_denoised_keeps_x0_in_range() -> None:
    scheduler = IDDPM(num_sampling_steps=6, clip_denoised=True)
    rng = generator(0, "noise")
    noise = lambda like: torch.randn(like.shape, generator=rng)  # noqa: E731
    for _, x0 in scheduler.iter_latents(two_halves, 5 * clip(), noise):
        assert x0.abs().max() <= 1


def test_ddim_without_eta_needs_no_noise_and_repeats() -> None:
    scheduler = IDDPM(num_sampling_steps=6, sampler="ddim")
    first = scheduler.sample(two_halves, clip(), [])
    assert torch.equal(first, scheduler.sample(two_halves, clip(), []))


def test_ddim_with_full_eta_steps_like_ddpm_with_small_variance() -> None:
    """Both draw from the same posterior (arXiv:2010.02502, section 4.1)."""
    steps = 8

    def sample(**settings: object) -> torch.Tensor:
        rngs = [generator(0, "a"), generator(0, "b")]
        scheduler = IDDPM(num_sampling_steps=steps, learn_sigma=False, sigma_small=True, **settings)
        return scheduler.sample(two_halves, clip(), rngs)

    torch.testing.assert_close(sample(sampler="ddim", eta=1.0), sample(), rtol=1e-3, atol=1e-3)


def test_guidance_of_some_channels() -> None:
    """Only guided channels feel the scale; the last one follows the text."""

    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        with_text = torch.arange(len(x)) < len(x) // 2
        return torch.where(with_text, 1.0, 0.5).view(-1, 1, 1, 1, 1) * x

    def sample(scale: float | None, cfg_channel: int | None) -> torch.Tensor:
        scheduler = IDDPM(num_sampling_steps=4, sampler="ddim", learn_sigma=False, cfg_channel=cfg_channel)
        if scale is None:  # the answer with text, without doubling
            return scheduler.sample(lambda x, t_B, x_mask=None: x, clip(), [])
        return scheduler.sample(denoise, clip(), [], guidance_scale=scale)

    plain = sample(None, 3)
    assert torch.equal(sample(2.0, 3)[:, 3], plain[:, 3])
    assert torch.equal(sample(2.0, 2)[:, 2:], plain[:, 2:])
    assert not torch.isclose(sample(2.0, 3)[:, :3], plain[:, :3]).any()
    assert not torch.isclose(sample(2.0, None)[:, 3], plain[:, 3]).any()


def test_masked_frames_are_noised_as_at_the_first_timestep() -> None:
    scheduler, x0, noise, inputs = IDDPM(), clip("x0"), clip("noise"), []
    mask = torch.tensor([[False, True, True], [True, False, True]])

    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        inputs.append(x)
        return two_halves(x, t_B)

    scheduler.training_loss(denoise, x0, t_B=torch.tensor([600, 900]), noise=noise, x_mask_BT=mask)
    first = scheduler.add_noise(x0, noise, torch.zeros(2))
    late = scheduler.add_noise(x0, noise, torch.tensor([600, 900]))
    assert torch.equal(inputs[0], torch.where(mask[:, None, :, None, None], late, first))


def test_masks_do_not_go_with_the_bound_alone() -> None:
    with pytest.raises(ConfigError, match="use_kl"):
        IDDPM(use_kl=True).training_loss(
            two_halves, clip(), [Draw(0, 0, 0), Draw(0, 0, 1)], x_mask_BT=torch.ones(2, 3, dtype=torch.bool)
        )


def test_learned_variance_needs_two_halves() -> None:
    with pytest.raises(ConfigError, match=r"model\.pred_sigma=True"):
        IDDPM().training_loss(lambda x, t_B, x_mask=None: x, clip(), [Draw(0, 0, 0), Draw(0, 0, 1)])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(num_sampling_steps=10, timestep_respacing="ddim10"),
        dict(num_sampling_steps=1001),
        dict(diffusion_steps=1),
        dict(diffusion_steps=20),
        dict(cfg_channel=0),
        dict(sampler="euler"),
        dict(eta=0.5),
        dict(sampler="ddim", eta=1.5),
        dict(table_dtype="float16"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="scheduler"):
        IDDPM(**wrong)


@pytest.mark.parametrize("kwargs", [{}, dict(use_kl=True), dict(learn_sigma=False), dict(rescale_learned_sigmas=True)])
def test_padding_counts_as_no_error_and_still_as_latents(kwargs: dict) -> None:
    """The loss is linear in the mask: what is valid and what is padding add up to the loss without a mask."""
    scheduler, x0, noise, t_B = IDDPM(**kwargs), clip("x0"), clip("noise"), torch.tensor([0, 500])
    model = two_halves if scheduler.learn_sigma else lambda x, t_B, x_mask=None: 0.5 * x
    valid = torch.zeros(2, 3, 4, 4)
    valid[0, :2], valid[1, :, :, :1] = 1, 1

    def loss(valid_BTHW: torch.Tensor | None) -> torch.Tensor:
        return scheduler.training_loss(model, x0, t_B=t_B, noise=noise, valid_BTHW=valid_BTHW).loss_B

    whole = loss(None)
    torch.testing.assert_close(loss(torch.ones(2, 3, 4, 4)), whole)
    torch.testing.assert_close(loss(valid) + loss(1 - valid), whole)
    assert (loss(valid) < 0.9 * whole).all()


def test_padding_may_hold_anything_small_and_works_with_frame_masks() -> None:
    scheduler, x0, noise = IDDPM(learn_sigma=False), clip("x0"), clip("noise")
    valid, frames = torch.ones(2, 3, 4, 4), torch.tensor([[True, True, False], [True, True, True]])
    valid[:, :, :, 2:] = 0

    def model(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        return noise + 1.0 + 100.0 * (valid == 0)[:, None]

    loss = scheduler.training_loss(
        model, x0, t_B=torch.tensor([5, 900]), noise=noise, x_mask_BT=frames, valid_BTHW=valid
    ).loss_B
    torch.testing.assert_close(loss, torch.tensor([0.5, 0.5]))  # half of every counted frame is wrong by 1
