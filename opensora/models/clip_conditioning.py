"""What a denoiser is told besides latents, timestep and text.

A model names in `size_conditions` which of these its forward takes, each float32 [B]:
num_frames of the clip; height, width in pixels; ar = height / width; fps in frames per second.
A model that is `conditioned` (Open-Sora 1.3) is also told of latents that are given.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IMAGE_FPS = 120.0  # an image has no frame rate; released weights were told this


def clip_conditions(model: Any, size: Sequence[int], fps_B: Tensor) -> dict[str, Tensor]:
    """Keyword arguments for `model.forward` that describe clips of (frames, height, width), on the device of fps_B."""
    frames, height, width = size
    fps_B = fps_B.float()
    known = {
        "num_frames": torch.full_like(fps_B, frames),
        "height": torch.full_like(fps_B, height),
        "width": torch.full_like(fps_B, width),
        "ar": torch.full_like(fps_B, height / width),
        "fps": torch.full_like(fps_B, IMAGE_FPS) if frames == 1 else fps_B,
    }
    return {name: known[name] for name in model.size_conditions}


def given_latents(
    latents_BCTHW: Tensor, given: Sequence[Sequence[int]], y_null_B1LC: Tensor, without: int = 0
) -> dict[str, Any]:
    """Keyword arguments for a conditioned `model.forward`: the frames numbered in `given`, of each sample its own.

    latents of other frames are not used. Where nothing is given the model is still told so, by an empty list: that is
    what it is trained with. y_null_B1LC: the null caption under the captions' mask, which given frames attend to.
    without: of so many samples at the end the given latents are withheld, though not where they are (guidance, see
    schedulers/guidance.py).
    """
    cond_mask = torch.zeros_like(latents_BCTHW)
    for row, frames in enumerate(given):
        cond_mask[row, :, list(frames)] = 1
    cond = torch.where(cond_mask.bool(), latents_BCTHW, 0)
    cond[len(cond) - without :] = 0
    return {
        "cond": cond,
        "cond_mask": cond_mask,
        "mask_index": [list(frames) for frames in given],
        "y_null": y_null_B1LC,
    }
