"""The tables of a discrete diffusion process: noise schedules, and fewer steps taken from many.

Sources: Ho et al. 2020, arXiv:2006.11239 (linear schedule, posterior); Nichol & Dhariwal 2021, arXiv:2102.09672 (cosine
schedule, respacing). The rounding is that of Open-Sora, whose tables are met exactly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from opensora.errors import ConfigError

NoiseSchedule = Literal["linear", "squaredcos_cap_v2"]


@dataclass(frozen=True)
class DiffusionTables:
    """Everything a process of S steps looks up, each [S]; a_bar is the share of signal variance left after a step."""

    timestep_map: Tensor  # int64, the full process's timestep, which the model gets
    betas: Tensor
    alphas_cumprod: Tensor  # a_bar
    alphas_cumprod_prev: Tensor  # a_bar of the step before, 1 at the first
    sqrt_recip_alphas_cumprod: Tensor  # sqrt(1 / a_bar)
    sqrt_recipm1_alphas_cumprod: Tensor  # sqrt(1 / a_bar - 1)
    posterior_variance: Tensor  # of q(x_{t-1} | x_t, x_0)
    posterior_log_variance_clipped: Tensor  # entry 0, a log of 0, is replaced by entry 1
    posterior_mean_coef1: Tensor  # of x_0 in that posterior's mean
    posterior_mean_coef2: Tensor  # of x_t

    @property
    def num_timesteps(self) -> int:
        return len(self.timestep_map)

    def index_of(self, t_B: Tensor) -> Tensor:
        """Steps of this process, on the CPU, from timesteps of the full one; ValueError for one not kept."""
        t_B = t_B.detach().cpu().long()
        index_B = torch.searchsorted(self.timestep_map, t_B).clamp(max=self.num_timesteps - 1)
        if not torch.equal(self.timestep_map[index_B], t_B):
            raise ValueError(
                f"iddpm: timesteps {t_B.tolist()}; only those kept by the respacing are allowed; change them"
            )
        return index_B


def make_tables(betas: np.ndarray, kept: Sequence[int], dtype: torch.dtype) -> DiffusionTables:
    """Tables of the process that visits only the timesteps `kept` of the one with these betas.

    dtype: float64 as in Open-Sora 1.0; from 1.1 on the new betas are rounded to float32 and all else follows in that.
    """
    full = np.cumprod(1.0 - betas)
    signal = full[list(kept)]
    rounded = (1.0 - signal / np.append(1.0, signal[:-1])).astype(str(dtype).removeprefix("torch."))
    # Each release had its own library, and the two differ in the last bits: torch keeps float32 products in float64.
    library: Any = np if dtype == torch.float64 else torch
    new_betas = rounded if library is np else torch.from_numpy(rounded)
    alphas = 1.0 - new_betas
    a_bar = library.cumprod(alphas, 0)
    before = library.ones_like(a_bar)
    before[1:] = a_bar[:-1]
    variance = new_betas * (1.0 - before) / (1.0 - a_bar)
    tables = dict(
        betas=new_betas,
        alphas_cumprod=a_bar,
        alphas_cumprod_prev=before,
        sqrt_recip_alphas_cumprod=library.sqrt(1.0 / a_bar),
        sqrt_recipm1_alphas_cumprod=library.sqrt(1.0 / a_bar - 1.0),
        posterior_variance=variance,
        posterior_log_variance_clipped=library.log(library.concatenate([variance[1:2], variance[1:]])),
        posterior_mean_coef1=new_betas * library.sqrt(before) / (1.0 - a_bar),
        posterior_mean_coef2=(1.0 - before) * library.sqrt(alphas) / (1.0 - a_bar),
    )
    return DiffusionTables(
        timestep_map=torch.tensor(list(kept)), **{name: torch.as_tensor(table) for name, table in tables.items()}
    )


def make_betas(noise_schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """Variance added by each step, float64 [steps]."""
    if noise_schedule == "linear":
        scale = 1000 / steps
        if scale * 0.02 >= 1:  # no signal would be left, and square roots of negative numbers
            raise ConfigError(
                f"scheduler.diffusion_steps: {steps}; 21 or more are allowed with noise_schedule='linear'; raise it"
            )
        return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
    if noise_schedule == "squaredcos_cap_v2":

        def signal(time: float) -> float:
            return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

        return np.array([min(1 - signal((i + 1) / steps) / signal(i / steps), 0.999) for i in range(steps)])
    raise ConfigError(
        f"scheduler.noise_schedule: {noise_schedule!r}; 'linear' or 'squaredcos_cap_v2' are allowed; choose one"
    )


def keep_timesteps(steps: int, respacing: str | Sequence[int]) -> list[int]:
    """The timesteps of `steps` that a shorter process visits.

    respacing: "" all; "n" or "a,b,c" = these counts of timesteps, each from one of equal sections; "ddimN" N of them at a whole
    stride. ConfigError when they do not fit.
    """
    if isinstance(respacing, str) and respacing.startswith("ddim"):
        count = _whole(respacing.removeprefix("ddim"), respacing)
        for stride in range(1, steps + 1):
            if len(range(0, steps, stride)) == count:
                return list(range(0, steps, stride))
        raise ConfigError(
            f"scheduler.timestep_respacing: {respacing!r}; no whole stride through {steps} steps gives {count}; use"
            f' another number, or "{count}" for uneven strides'
        )
    if isinstance(respacing, str):
        counts = [_whole(part, respacing) for part in respacing.split(",")] if respacing else [steps]
    else:
        counts = list(respacing) or [steps]
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):  # the first sections take what does not divide
        size = steps // len(counts) + (1 if section < steps % len(counts) else 0)
        if not 1 <= count <= size:
            raise ConfigError(
                f"scheduler.timestep_respacing: {count} steps from a section of {size}; 1 to {size} are allowed; change"
                " timestep_respacing or num_sampling_steps"
            )
        gap = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += gap  # added up with its rounding errors, as released tables were
        start += size
    return kept


def _whole(text: str, respacing: str) -> int:
    if text.strip().isdecimal():
        return int(text)
    raise ConfigError(
        f'scheduler.timestep_respacing: {respacing!r}; "n", "a,b,c" or "ddimN" with whole numbers are allowed; correct it'
    )
