"""Conditioning of a denoiser on frames of a clip, by frame masks or by conditioning latents.

Masks: conditioning frames stand clean among the noised ones, and the model gets `x_mask` (Open-Sora 1.1, 1.2).
Latents: all frames are noised, and the model gets the conditioning latents as separate inputs (Open-Sora 1.3).
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.registry import MODELS, class_of, constructor

ConditioningMode = Literal["masks", "latents"]


def conditioning_mode(model: Mapping[str, Any], key: str) -> ConditioningMode:
    """The mode of the model with this config; builds nothing. Raises ConfigError for a model without frame conditioning.

    key: config file and key that ask for conditioning frames, for the message.
    """
    parameters = inspect.signature(constructor(MODELS, model["type"])).parameters
    by_latents = "conditioned" in parameters and model.get("conditioned", parameters["conditioned"].default)
    if not by_latents and not class_of(MODELS, model["type"]).takes_x_mask:
        raise ConfigError(
            f"{key}: {model['type']} cannot be conditioned on frames; allowed: a model with frame masks, such as STDiT; "
            "remove the key or change the model"
        )
    patch = model.get("patch_size", parameters["patch_size"].default)
    if patch[0] != 1:
        raise ConfigError(
            f"{key}: model.patch_size {tuple(patch)} joins {patch[0]} latent frames in a token; allowed: 1, so that each "
            "frame can be conditioning or not; change one of the two"
        )
    return "latents" if by_latents else "masks"


def frame_conditioning(
    latents_BCTHW: Tensor, frames: Sequence[Sequence[int]], y_null_B1LC: Tensor, drop_last: int = 0
) -> dict[str, Any]:
    """Keyword arguments of a `conditioned` denoiser: latents_BCTHW at `frames`, one list of indices per sample.

    Without conditioning frames the lists are empty but still passed, as in training.
    y_null_B1LC: the null caption, under the mask of the captions; conditioning frames attend to it.
    drop_last: zero the latents, but not the mask, of this many trailing samples, for image guidance
    (schedulers/guidance.py).
    """
    cond_mask = torch.zeros_like(latents_BCTHW)
    for row, indices in enumerate(frames):
        cond_mask[row, :, list(indices)] = 1
    cond = torch.where(cond_mask.bool(), latents_BCTHW, 0)
    cond[len(cond) - drop_last :] = 0
    return {
        "cond": cond,
        "cond_mask": cond_mask,
        "mask_index": [list(indices) for indices in frames],
        "y_null": y_null_B1LC,
    }
