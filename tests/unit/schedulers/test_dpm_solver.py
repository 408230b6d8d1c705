import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.rng import generator
from opensora.schedulers.dpm_solver import DPMSolver
from opensora.schedulers.epsilon_sampler import interpolate

SHAPE = (2, 4, 2, 3, 3)
LINEAR = DPMSolver()


def clip(name: str = "clip") -> Tensor:
    return torch.randn(SHAPE, generator=generator(0, name))


def shrinks(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
    """The noise of clips that are themselves normal noise of spread 0.5: the best answer there is."""
    a_bar = LINEAR.add_noise(torch.ones_like(x), torch.zeros_like(x), t_B).square()
    return (1 - a_bar).sqrt() * x / (1 - 0.75 * a_bar)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_error_falls_with_the_order(order: int) -> None:
    """Twice the steps divide the error by 2 to the power of the order."""
    # That denoiser's equation has a closed solution: the latents keep their place in units of their own spread.
    a_bar = [DPMSolver().process.training_tables.alphas_cumprod[t].item() for t in (999, 0)]
    exact = clip("noise") * ((1 - 0.75 * a_bar[1]) / (1 - 0.75 * a_bar[0])) ** 0.5
    errors = []
    for steps in (160, 320):
        made = DPMSolver(num_sampling_steps=steps, order=order).sample(shrinks, clip("noise"), [])
        errors.append((made - exact).abs().max().item())
    assert errors[1] < 1.25 * errors[0] / 2**order
    assert errors[1] < 0.02


def test_one_step_ends_at_the_first_timestep_and_not_at_clean_latents() -> None:
    noise = clip("noise")
    made = DPMSolver(num_sampling_steps=1).sample(lambda x, t_B, x_mask=None: noise, noise, [])
    last = DPMSolver().process.training_tables.alphas_cumprod[-1].item()
    believed = noise * (1 - (1 - last) ** 0.5) / last**0.5
    torch.testing.assert_close(made, DPMSolver().add_noise(believed, noise, torch.zeros(2)), rtol=1e-4, atol=1e-4)


def test_cosine_grid_stops_before_the_signal_is_gone() -> None:
    linear, cosine = (
        DPMSolver(num_sampling_steps=4),
        DPMSolver(num_sampling_steps=4, noise_schedule="squaredcos_cap_v2"),
    )
    assert linear.sampling_timesteps().tolist() == [999, 749.25, 499.5, 249.75, 0]
    top = cosine.sampling_timesteps()[0].item()
    a_bar = cosine.process.training_tables.alphas_cumprod
    assert 0.5 * torch.log(a_bar / (1 - a_bar))[int(top)] >= -5.1 > 0.5 * torch.log(a_bar / (1 - a_bar))[int(top) + 1]


def test_fractional_timesteps_lie_between_whole_ones() -> None:
    table = torch.tensor([0.0, 10.0, 30.0])
    places = torch.tensor([0.0, 0.5, 1.25, 2.0, 2.5, -1.0])
    assert interpolate(table, places).tolist() == [0, 5, 15, 30, 40, -10]
    scheduler, x0, noise = DPMSolver(), clip(), clip("noise")
    whole = torch.tensor([0.0, 400.0])
    torch.testing.assert_close(
        scheduler.add_noise(x0, noise, whole), scheduler.process.add_noise(x0, noise, whole), rtol=1e-5, atol=1e-6
    )


def test_learned_variance_is_not_read_and_all_channels_are_guided() -> None:
    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        halves = torch.cat([0.1 * x[:2], 0.3 * x[2:]])
        return torch.cat([halves, torch.full_like(halves, torch.nan)], dim=1)

    scheduler = DPMSolver(num_sampling_steps=3)
    cfg_predict = scheduler.sample(denoise, clip(), [], guidance_scale=2.0)
    pushed = scheduler.sample(lambda x, t_B, x_mask=None: 0.5 * x, clip(), [])  # 0.1 + 2 * (0.3 - 0.1)
    torch.testing.assert_close(cfg_predict, pushed)


def test_fewer_than_ten_steps_end_with_lower_orders() -> None:
    """The last step of a short run rests on one answer, so that it cannot overshoot."""

    def last_two(steps: int) -> tuple[Tensor, Tensor]:
        scheduler, answers = DPMSolver(num_sampling_steps=steps, order=2), []

        def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
            answers.append(torch.tanh(x + t_B.view(-1, 1, 1, 1, 1) / 300))
            return answers[-1]

        *_, before, made = scheduler.iter_latents(lambda x, t_B, mask: denoise(x, t_B), clip("noise"), [])
        t_B = scheduler.sampling_timesteps()[-2].expand(2)
        signal, spread = (scheduler.add_noise(*pair, t_B) for pair in ((before, 0 * before), (0 * before, answers[-1])))
        x0 = (before - spread) / (signal / before)
        first_order = scheduler.add_noise(x0, answers[-1], torch.zeros(2))
        return made, first_order

    torch.testing.assert_close(*last_two(9), rtol=1e-3, atol=1e-3)
    made, first_order = last_two(10)
    assert (made - first_order).abs().max() > 0.01


@pytest.mark.parametrize("wrong", [dict(order=4), dict(order=0), dict(num_sampling_steps=0)])
def test_settings_that_cannot_work_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="scheduler"):
        DPMSolver(**wrong)
