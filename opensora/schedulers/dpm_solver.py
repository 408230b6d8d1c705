"""DPM-Solver++: few steps through the differential equation of a model trained with `iddpm`.

Source: Lu et al. 2022, arXiv:2211.01095: data prediction, multistep (algorithm 2; third order as in the authors'
appendix). Grid, first steps and model time are those of Open-Sora 1.0 and 1.1.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError
from opensora.registry import SCHEDULERS
from opensora.schedulers.epsilon_sampler import EpsilonSampler, first_step, interpolate, log_ratio, sigma
from opensora.schedulers.guidance import Predict
from opensora.schedulers.tables import NoiseSchedule
from opensora.schedulers.timesteps import draw_noise

SMALLEST_LOG_RATIO = -5.1  # beyond it the cosine schedule's ratio falls too fast for steps even in time


@SCHEDULERS.register_module(name="dpm-solver")
class DPMSolver(EpsilonSampler):
    """DPM-Solver++ with steps even in time; the model gets fractional timesteps as well.

    order: 1 to 3, predictions of the model that a step rests on; 2 is Open-Sora's. The first steps, and with fewer than
        10 the last ones as well, rest on fewer. The other arguments are those of EpsilonSampler.
    """

    name = "dpm-solver"

    def __init__(
        self,
        num_sampling_steps: int = 20,
        cfg_scale: float = 4.0,
        order: int = 2,
        noise_schedule: NoiseSchedule = "linear",
        diffusion_steps: int = 1000,
        learn_sigma: bool = True,
    ):
        if order not in (1, 2, 3):
            raise ConfigError(f"scheduler.order: {order}; 1, 2 or 3 are allowed; choose one")
        super().__init__(num_sampling_steps, cfg_scale, noise_schedule, diffusion_steps, learn_sigma)
        self.order = order
        self.reached = int((log_ratio(self.log_alpha) >= SMALLEST_LOG_RATIO).sum())

    def sampling_timesteps(self) -> Tensor:
        """The start of every step and the end of the last, falling to 0: float64 [num_sampling_steps + 1]."""
        return torch.linspace(self.reached - 1, 0, self.num_sampling_steps + 1, dtype=torch.float64)

    def iter_latents(
        self, predict: Predict, noise_BCTHW: Tensor, rngs: Sequence[Generator], start: float = 1.0
    ) -> Iterator[Tensor]:
        """The latents after every step; nothing is drawn but the noise of a clip that is edited."""
        x, steps = noise_BCTHW, self.num_sampling_steps
        times = self.sampling_timesteps()
        log_alphas = interpolate(self.log_alpha[: self.reached], times)
        alphas, sigmas = log_alphas.exp().tolist(), sigma(log_alphas).tolist()
        lambdas = log_ratio(log_alphas).tolist()
        x0_predictions: list[Tensor] = []  # the newest first
        first = first_step(times[:-1].tolist(), start * (self.reached - 1))
        for step in range(steps):
            if step < first:
                yield x
                continue
            t_B = x.new_full((len(x),), times[step].item())
            if step == first and start < 1:
                x = self.add_noise(x, draw_noise(x, rngs), t_B)
            x0 = (x - sigmas[step] * predict(x, t_B, None)) / alphas[step]
            x0_predictions = [x0, *x0_predictions[: self.order - 1]]
            order = min(len(x0_predictions), steps - step) if steps < 10 else len(x0_predictions)
            x = sigmas[step + 1] / sigmas[step] * x - alphas[step + 1] * _multistep_update(
                x0_predictions[:order], lambdas[max(step - order + 1, 0) : step + 2]
            )
            yield x


def _multistep_update(x0_predictions: list[Tensor], lambdas: list[float]) -> Tensor:
    """phi_1 D_0 + ...: the sum over a step that rests on the last one to three predictions of x_0, the newest first.

    lambdas: log(alpha / sigma) of each prediction, the oldest first, and last that of the end of the step.
    """
    h = lambdas[-1] - lambdas[-2]
    phi_1 = math.expm1(-h)
    update = phi_1 * x0_predictions[0]
    if len(x0_predictions) == 1:
        return update
    r_0 = (lambdas[-2] - lambdas[-3]) / h
    d1_0 = (x0_predictions[0] - x0_predictions[1]) / r_0
    if len(x0_predictions) == 2:
        return update + 0.5 * phi_1 * d1_0
    r_1 = (lambdas[-3] - lambdas[-4]) / h
    d1_1 = (x0_predictions[1] - x0_predictions[2]) / r_1
    d2 = (d1_0 - d1_1) / (r_0 + r_1)
    phi_2 = phi_1 / h + 1.0
    phi_3 = phi_2 / h - 0.5
    return update - phi_2 * (d1_0 + r_0 * d2) + phi_3 * d2
