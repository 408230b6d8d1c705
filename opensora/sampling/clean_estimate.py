"""The clean latents that a denoiser's answer implies, long before sampling ends: previews show them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from opensora.interfaces import Scheduler


@dataclass(frozen=True)
class Preview:
    """Looks into a video while it is made. Each one decodes the video once more.

    every: calls of the model from one to the next. show: gets the videos [B, 3, T, H, W], float32 on the CPU.
    """

    every: int
    show: Callable[[Tensor], None]


def clean_estimate(scheduler: Scheduler, x_BCTHW: Tensor, answer_BCTHW: Tensor, t_B: Tensor) -> Tensor:
    """Clean latents [B, C, T, H, W], float32, from noisy ones and the model's answer at their timesteps.

    Every process here is linear: x_t = a x_0 + s noise, and the model answers p x_0 + q noise. So
    x_0 = (q x_t - s answer) / (a q - s p).
    """
    x = x_BCTHW.float()
    answer = answer_BCTHW[:, : x.shape[1]].float()
    zero, one = torch.zeros_like(x[:, :1, :1, :1, :1]), torch.ones_like(x[:, :1, :1, :1, :1])
    a, s = scheduler.add_noise(one, zero, t_B), scheduler.add_noise(zero, one, t_B)
    p, q = scheduler.target(one, zero), scheduler.target(zero, one)
    return (q * x - s * answer) / (a * q - s * p)
