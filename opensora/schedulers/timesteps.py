"""Timesteps and noise, drawn per sample, and what a training loss returns.

Shapes: B batch, C latent channels, T H W latent frames, rows, columns.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

# Called with a tensor of the wanted shape, returns standard normal noise like it.
StepNoise = Callable[[Tensor], Tensor]
# Called with (steps done, steps in all).
Progress = Callable[[int, int], None]
# Of Open-Sora, where rectified flow differs between two of them.
Release = Literal["1.2", "1.3"]


class Denoise(Protocol):
    """A model with everything but the noisy latents bound to it.

    `t_B` is float32 on the scheduler's scale (0 data, 1000 noise); `x_mask` is bool [B, T], True = frame is noised.
    """

    def __call__(self, x_BCTHW: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor: ...


class SampleRng(Protocol):
    """One training sample's randomness: a fresh generator per purpose (opensora.rng.Draw is one)."""

    def rng(self, purpose: str) -> Generator: ...


class TrainingLoss(NamedTuple):
    """The result of `training_loss`; the training step reduces it."""

    loss_B: Tensor  # float32, with gradient
    t_B: Tensor  # float32 in [0, num_timesteps], 0 = data; for the loss per timestep bin
    terms: dict[str, Tensor]  # parts of the loss, each [B], for the metrics


class TrainingDraw(NamedTuple):
    """Timesteps [B] and noise [B, C, T, H, W] of one micro-batch."""

    t_B: Tensor
    noise_BCTHW: Tensor


def sample_t_and_noise(
    x0_BCTHW: Tensor,
    draws: Sequence[SampleRng] | None,
    draw_timestep: Callable[[Generator], Tensor],
    t_B: Tensor | None,
    noise_BCTHW: Tensor | None,
) -> TrainingDraw:
    """Draw what the arguments leave open: each sample draws for itself, so how samples are grouped changes nothing.

    The noise comes on the device of x0, the timesteps where they were made. ValueError when something must be drawn and
    `draws` does not hold one source per sample.
    """
    if draws is None or len(draws) != len(x0_BCTHW):
        if t_B is None or noise_BCTHW is None:
            count = "none" if draws is None else str(len(draws))
            raise ValueError(
                f"training_loss: {count} draws for {len(x0_BCTHW)} samples; one per sample is needed to draw the"
                " timestep and the noise; pass draws, or both t_B and noise"
            )
        draws = []
    if t_B is None:
        t_B = torch.cat([draw_timestep(draw.rng("timestep")) for draw in draws])
    if noise_BCTHW is None:
        noise_BCTHW = draw_noise(x0_BCTHW, [draw.rng("noise") for draw in draws])
    return TrainingDraw(t_B, noise_BCTHW.to(x0_BCTHW.device, torch.float32))


def draw_noise(like_BCTHW: Tensor, rngs: Sequence[Generator]) -> Tensor:
    """Standard normal noise, sample i from rngs[i]: float32, drawn on the CPU so that every device sees the same."""
    if len(rngs) != len(like_BCTHW):
        raise ValueError(f"noise: {len(rngs)} generators for {len(like_BCTHW)} samples; one per sample is needed")
    noise = [torch.randn(sample.shape, generator=rng) for sample, rng in zip(like_BCTHW, rngs, strict=True)]
    return torch.stack(noise).to(like_BCTHW.device)


def per_sample_noise(rngs: Sequence[Generator]) -> StepNoise:
    """The noise of a sampler's steps: each sample continues its own generator."""
    return lambda like_BCTHW: draw_noise(like_BCTHW, rngs)


def resolution_ratio(
    num_frames: int,
    height: int,
    width: int,
    scale: float = 1.0,
    release: Release = "1.2",
    scale_temporal: bool = True,
) -> float:
    """The factor by which a clip of this size (frames, pixels) needs more noise than an image of 512 x 512 pixels.

    r = scale * sqrt(H * W / 512^2) * sqrt(latent frames). release: of Open-Sora. In 1.2, 17 frames make 5 latent frames;
    in 1.3, 4 frames make one and the first frame none, and images go without `scale`. scale_temporal: False leaves the
    last factor out.
    Both releases count 0 latent frames for clips that are short (2 to 16 frames in 1.2, 2 to 4 in 1.3), so r = 0: every
    t < 1000 becomes 0 and t = 1000 becomes NaN. Such a clip has at least one latent frame, so it counts as one here.
    """
    latent_frames = 1
    if scale_temporal:
        latent_frames = max(num_frames // 17 * 5 if release == "1.2" else (num_frames - 1) // 4, 1)
    if release == "1.3" and num_frames == 1:
        scale = 1.0
    return scale * math.sqrt(height * width / 512**2) * math.sqrt(latent_frames)


def shift_timesteps(t: Tensor, ratio: float, num_timesteps: int) -> Tensor:
    """Move t in [0, num_timesteps] towards noise for ratio > 1: tau' = r tau / (1 + (r - 1) tau).

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 23.
    """
    tau = t / num_timesteps
    shifted = ratio * tau / (1 + (ratio - 1) * tau) * num_timesteps
    return shifted.clamp(max=num_timesteps)  # rounding must not lift t = num_timesteps above every mask
