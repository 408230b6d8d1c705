"""Calls of a denoiser for one guided clip, as a scheduler makes them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from opensora.sampling.bound_denoiser import BoundDenoiser, bound_denoiser
from opensora.sampling.model_inputs import ModelInputs
from opensora.sampling.shortcuts import Shortcuts
from opensora.types import EncodedText
from tests.support.small_models import inputs

Step = tuple[Tensor, float]  # noisy latents [B, C, T, H, W], and the noise level from 0 to 1


def guided_inputs(model: Any) -> ModelInputs:
    """One video of a small denoiser: its caption, then another that stands for none."""
    rows = inputs(model)
    if model.conditioned:
        rows["mask_index"] = [[0], [0]]
    text = EncodedText(rows.pop("y"), rows.pop("mask"))
    x, _ = rows.pop("x"), rows.pop("timestep")
    return ModelInputs(x[:1], text, rows, {}, ("cond", "null"))


def steps(model: Any, count: int, change: float = 1.0) -> list[Step]:
    """Latents that change by this much from step to step, and falling levels; change 0: every step is the same."""
    rng = Generator().manual_seed(7)
    start, way = torch.randn(2, 1, model.in_channels, *model.input_size, generator=rng)
    return [(start + change * n / count * way, 0.75 - 0.5 * (change != 0) * n / count) for n in range(count)]


@torch.no_grad()
def run_clip(
    model: Any, clip_inputs: ModelInputs, shortcuts: Shortcuts, clip: Sequence[Step]
) -> tuple[list[Tensor], BoundDenoiser]:
    """The answers of all steps, [copies * B, ...] each, and the caller, which has counted."""
    copies = len(clip_inputs.copies)
    with bound_denoiser(model, model, clip_inputs, shortcuts, 1000, len(clip)) as denoise:
        answers = [denoise(torch.cat([x] * copies), torch.full((copies * len(x),), 1000 * level)) for x, level in clip]
    return answers, denoise
