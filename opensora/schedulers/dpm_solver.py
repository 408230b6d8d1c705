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
from opensora.schedulers.epsilon_sampler import EpsilonSampler, interpolate, log_ratio, spread_of
from opensora.schedulers.guidance import Predict
from opensora.schedulers.tables import NoiseSchedule

SMALLEST_LOG_RATIO = -5.1  # beyond it the cosine schedule's ratio falls too fast for steps even in time


@SCHEDULERS.register_module(name="dpm-solver")
class DPMSolver(EpsilonSampler):
    """DPM-Solver++ with steps even in time; the model is told timesteps between two whole ones, too.

    order: 1 to 3, how many answers of the model a step rests on; 2 is Open-Sora's. The first steps, and with fewer than
        10 the last ones as well, rest on fewer. The other arguments are those of NoiseSampler.
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
        """Where every step starts and the last one ends, falling to 0: float64 [num_sampling_steps + 1]."""
        return torch.linspace(self.reached - 1, 0, self.num_sampling_steps + 1, dtype=torch.float64)

    def iter_latents(self, predict: Predict, noise_BCTHW: Tensor, rngs: Sequence[Generator]) -> Iterator[Tensor]:
        """The latents after every step; nothing is drawn."""
        x, steps = noise_BCTHW, self.num_sampling_steps
        times = self.sampling_timesteps()
        log_signals = interpolate(self.log_alpha[: self.reached], times)
        signals, spreads = log_signals.exp().tolist(), spread_of(log_signals).tolist()
        ratios = log_ratio(log_signals).tolist()
        believed: list[Tensor] = []  # clean latents, the newest first
        for step in range(steps):
            t_B = x.new_full((len(x),), times[step].item())
            x0 = (x - spreads[step] * predict(x, t_B, None)) / signals[step]
            believed = [x0, *believed[: self.order - 1]]
            order = min(len(believed), steps - step) if steps < 10 else len(believed)
            x = spreads[step + 1] / spreads[step] * x - signals[step + 1] * _mean_of(
                believed[:order], ratios[max(step - order + 1, 0) : step + 2]
            )
            yield x


def _mean_of(believed: list[Tensor], ratios: list[float]) -> Tensor:
    """phi_1 m_0 + ..., what the last one to three beliefs add up to over a step.

    ratios: lambda of each belief, the oldest first, and last that of the end of the step.
    """
    h = ratios[-1] - ratios[-2]
    phi_1 = math.expm1(-h)
    mean = phi_1 * believed[0]
    if len(believed) == 1:
        return mean
    r_0 = (ratios[-2] - ratios[-3]) / h
    slope_0 = (believed[0] - believed[1]) / r_0
    if len(believed) == 2:
        return mean + 0.5 * phi_1 * slope_0
    r_1 = (ratios[-3] - ratios[-4]) / h
    slope_1 = (believed[1] - believed[2]) / r_1
    bend = (slope_0 - slope_1) / (r_0 + r_1)
    phi_2 = phi_1 / h + 1.0
    phi_3 = phi_2 / h - 0.5
    return mean - phi_2 * (slope_0 + r_0 * bend) + phi_3 * bend
