from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.rng import Draw, generator
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.schedulers.timesteps import resolution_ratio

SHAPE = (2, 4, 3, 4, 4)


def clip(name: str = "clip") -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(0, name))


def no_noise(like: torch.Tensor) -> torch.Tensor:
    raise AssertionError("no noise is needed here")


def test_add_noise_ends() -> None:
    scheduler, x0, noise = RectifiedFlow(), clip("x0"), clip("noise")
    assert torch.equal(scheduler.add_noise(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(scheduler.add_noise(x0, noise, torch.full((2,), 1000.0)), noise)


def test_uniform_timesteps_cover_the_scale() -> None:
    t = RectifiedFlow().draw_timesteps(4096, generator(0, "t"))
    assert t.dtype == torch.float32
    assert 0 <= t.min() < 2
    assert 998 < t.max() < 1000
    assert abs(t.mean() - 500) < 15


def test_discrete_timesteps_are_whole() -> None:
    scheduler = RectifiedFlow(num_timesteps=10, use_discrete_timesteps=True, num_sampling_steps=4)
    assert set(scheduler.draw_timesteps(512, generator(0, "t")).tolist()) == set(range(10))
    assert scheduler.sampling_timesteps().tolist() == [10, 8, 5, 2]


def test_logit_normal_location_moves_and_scale_spreads() -> None:
    def draw(**kwargs: float) -> torch.Tensor:
        return RectifiedFlow(sample_method="logit-normal", **kwargs).draw_timesteps(2048, generator(0, "t"))

    assert abs(draw().median() - 500) < 25
    torch.testing.assert_close(draw(loc=1.0).median().item(), 1000 / (1 + 2.718281828**-1), rtol=0.04, atol=0)
    assert draw(scale=0.2).std() < draw(scale=1.0).std() < draw(scale=3.0).std()


def test_training_shift_uses_transform_scale_and_sampling_does_not() -> None:
    size = (1, 512, 512)  # the ratio of this size is 1
    shifted = RectifiedFlow(use_timestep_transform=True, transform_scale=3.0, num_sampling_steps=4)
    plain = RectifiedFlow(num_sampling_steps=4)
    before = plain.draw_timesteps(8, generator(0, "t"), size) / 1000
    after = shifted.draw_timesteps(8, generator(0, "t"), size) / 1000
    torch.testing.assert_close(after, 3 * before / (1 + 2 * before))
    torch.testing.assert_close(shifted.sampling_timesteps(size), plain.sampling_timesteps())


@pytest.mark.parametrize("release", ["1.2", "1.3"])
def test_shift_is_finite_and_rising_for_every_length(release: Any) -> None:
    scheduler = RectifiedFlow(use_timestep_transform=True, num_sampling_steps=20, release=release)
    for num_frames in (1, 2, 8, 16, 17, 51):
        grid = scheduler.sampling_timesteps((num_frames, 32, 32))
        assert grid.isfinite().all(), num_frames
        assert 999.999 < grid[0] <= 1000, num_frames
        assert (grid.diff() < 0).all(), num_frames


def test_open_sora_1_3_shifts_sampling_and_spares_images() -> None:
    size, image = (5, 512, 512), (1, 512, 512)  # one latent frame, so the ratio of both is transform_scale or 1
    options = dict(use_timestep_transform=True, transform_scale=3.0, num_sampling_steps=4)
    newer, plain = RectifiedFlow(release="1.3", **options), RectifiedFlow(num_sampling_steps=4)
    tau = plain.sampling_timesteps() / 1000
    torch.testing.assert_close(newer.sampling_timesteps(size) / 1000, 3 * tau / (1 + 2 * tau))
    torch.testing.assert_close(newer.sampling_timesteps(image), plain.sampling_timesteps())
    timesteps = newer.draw_timesteps(8, generator(0, "t"), size)
    torch.testing.assert_close(timesteps, plain.draw_timesteps(8, generator(0, "t")))


@pytest.mark.parametrize(
    ("release", "num_frames", "latent_frames"),
    [("1.2", 1, 1), ("1.2", 16, 1), ("1.2", 17, 5), ("1.2", 51, 15), ("1.3", 1, 1), ("1.3", 4, 1), ("1.3", 17, 4)],
)
def test_latent_frames_are_those_of_the_release(release: Any, num_frames: int, latent_frames: int) -> None:
    assert resolution_ratio(num_frames, 512, 512, release=release) == latent_frames**0.5
    assert resolution_ratio(num_frames, 256, 256, release=release, scale_temporal=False) == 0.5


def test_given_frames_are_guided_in_a_tripled_batch() -> None:
    text, frames = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])

    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        assert torch.equal(x, torch.cat([x[:2]] * 3))
        return (text + 10 * frames).view(-1, 1, 1, 1, 1).expand_as(x)

    scheduler = RectifiedFlow(num_sampling_steps=1)
    made = scheduler.sample(denoise, clip(), [], guidance_scale=2.0, image_guidance_scale=3.0)
    torch.testing.assert_close(made, clip() + 2 * 1 + 3 * 10)
    assert scheduler.image_text_order == "cond,null,null"


def test_oscillation_rests_where_the_config_says() -> None:
    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        return torch.cat([torch.ones_like(x[:2]), torch.zeros_like(x[2:])])

    scheduler = RectifiedFlow(num_sampling_steps=4, oscillate_text=True, force_num=2)
    made = scheduler.sample(denoise, clip(), [], guidance_scale=5.0)
    torch.testing.assert_close(made, clip() + (5 + 5 + 5 + 1) / 4)


def test_shift_without_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="pass size="):
        RectifiedFlow(use_timestep_transform=True).sampling_timesteps()


def test_loss_ignores_the_variance_half() -> None:
    scheduler, x0, noise, t = RectifiedFlow(), clip("x0"), clip("noise"), torch.tensor([100.0, 900.0])
    loss = scheduler.training_loss(
        lambda x, t_B, x_mask=None: torch.cat([x0 - noise, x + 7], dim=1), x0, t_B=t, noise=noise
    )
    assert torch.equal(loss.loss_B, torch.zeros(2))
    assert torch.equal(loss.t_B, t)


def test_masked_frames_stay_clean_and_do_not_count() -> None:
    scheduler, x0 = RectifiedFlow(), clip("x0")
    mask = torch.tensor([[False, True, True], [False, False, False]])
    inputs = []

    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        inputs.append((x, x_mask))
        wrong = torch.where(mask[:, None, :, None, None], 1.0, 1e6)
        return x0 - noise + wrong

    noise = torch.stack([torch.randn(SHAPE[1:], generator=Draw(0, 0, i).rng("noise")) for i in range(2)])
    loss = scheduler.training_loss(denoise, x0, [Draw(0, 0, 0), Draw(0, 0, 1)], x_mask_BT=mask)
    torch.testing.assert_close(loss.loss_B, torch.tensor([1.0, 0.0]))
    x_t, x_mask = inputs[0]
    assert x_mask is mask
    assert torch.equal(x_t[0, :, 0], x0[0, :, 0])
    assert torch.equal(x_t[1], x0[1])
    assert not torch.isclose(x_t[0, :, 1:], x0[0, :, 1:]).any()


def test_sampling_without_mask_needs_no_noise_and_reports_progress() -> None:
    reports = []
    z = RectifiedFlow(num_sampling_steps=3).sample(
        lambda x, t_B, x_mask=None: -x, clip(), [], step_noise=no_noise, progress=lambda *now: reports.append(now)
    )
    torch.testing.assert_close(z, clip() * (2 / 3) ** 3)
    assert reports == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("num_frames", [1, 17, 51])  # rounding once lifted the first t of some sizes above 1000
def test_all_ones_mask_changes_nothing(num_frames: int) -> None:
    scheduler = RectifiedFlow(num_sampling_steps=5, use_timestep_transform=True)
    size = (num_frames, 32, 32)

    def denoise(x: torch.Tensor, t_B: torch.Tensor, x_mask: torch.Tensor | None = None) -> torch.Tensor:
        return torch.tanh(x) - t_B.view(-1, 1, 1, 1, 1) / 1000

    rngs = [generator(0, "a"), generator(0, "b")]
    masked = scheduler.sample(denoise, clip(), rngs, mask_BT=torch.ones(2, 3), size=size)
    assert torch.equal(masked, scheduler.sample(denoise, clip(), [], size=size))


def test_clean_frames_come_back_bit_for_bit() -> None:
    clean = clip()
    mask = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.3]])
    rngs = [generator(0, "a"), generator(0, "b")]
    made = RectifiedFlow(num_sampling_steps=5).sample(lambda x, t_B, x_mask=None: -x, clean, rngs, mask_BT=mask)
    same = (made == clean).all(dim=4).all(dim=3).all(dim=1)
    assert torch.equal(same, mask == 0)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(num_sampling_steps=0),
        dict(sample_method="cosine"),
        dict(use_discrete_timesteps=True, sample_method="logit-normal"),
        dict(transform_scale=0.0),
        dict(release="1.1"),
        dict(guidance_rescale=1.5),
        dict(force_num=-1),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="scheduler"):
        RectifiedFlow(**wrong)


def test_missing_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 .* 2 samples"):
        RectifiedFlow().training_loss(lambda x, t_B, x_mask=None: x, clip(), [Draw(0, 0, 0)])
