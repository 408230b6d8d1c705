"""Classifier-free guidance: the model is asked with and without the text, and the difference is exaggerated.

Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, written as null + scale * (cond - null).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from opensora.schedulers.timesteps import Denoise

# How a caller stacks the text of the doubled batch: first all captions, then as many null captions.
TextOrder = Literal["cond,null"]

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def is_guided(scale: float | None) -> bool:
    """Whether the model sees a doubled batch: a scale of 1 is the model's own answer, at half the cost."""
    return scale is not None and scale != 1.0


def guided(denoise: Denoise, scale: float | None, guided_channels: int | None) -> Predict:
    """`predict(x, t_B, x_mask)` that asks `denoise` on the doubled batch [x; x] and returns the guided answer for x.

    guided_channels: how many leading output channels follow the guidance; the others keep the answer given with the
    text. None = all.
    """

    def predict(x_BCTHW: Tensor, t_B: Tensor, x_mask_BT: Tensor | None) -> Tensor:
        if scale is None or not is_guided(scale):
            return denoise(x_BCTHW, t_B, x_mask=x_mask_BT).float()
        x_mask = None if x_mask_BT is None else torch.cat([x_mask_BT, x_mask_BT])
        answer = denoise(torch.cat([x_BCTHW, x_BCTHW]), torch.cat([t_B, t_B]), x_mask=x_mask)
        cond, null = answer.float().chunk(2)
        channels = cond.shape[1] if guided_channels is None else guided_channels
        pushed = null[:, :channels] + scale * (cond[:, :channels] - null[:, :channels])
        return torch.cat([pushed, cond[:, channels:]], dim=1)

    return predict
