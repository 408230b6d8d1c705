"""Classifier-free guidance: the model predicts with and without the text, and the difference is exaggerated.

Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, written as null + scale * (cond - null). With given frames there
are two differences, each with a scale of its own, after Brooks et al. 2022, arXiv:2211.09800, eq. 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from opensora.schedulers.masking import over_frames
from opensora.schedulers.timesteps import Denoise

# How a caller stacks the conditions of the repeated batch, each word standing for B rows:
#   "cond,null"       all captions, then B null captions;
#   "null,cond"       the other way round;
#   "cond,null,null"  three copies of each sample, where frames are given to the model as a condition of their own:
#                     [caption, frames given], [null caption, frames given], [null caption, frames zeroed]. The mask of
#                     the given frames stays the same in all three, as in Open-Sora 1.3.
TextOrder = Literal["cond,null", "null,cond", "cond,null,null"]

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (x_BCTHW, t_B, x_mask_BT) -> guided prediction


def is_guided(scale: float | None) -> bool:
    """True if the model sees a doubled batch; a scale of 1 is the model's own prediction, at half the cost."""
    return scale is not None and scale != 1.0


def predict_copies(
    denoise: Denoise, copies: int, x_BCTHW: Tensor, t_B: Tensor, x_mask_BT: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The model's float32 predictions for each of `copies` of the batch, by one call."""
    x_mask = None if x_mask_BT is None else torch.cat([x_mask_BT] * copies)
    return denoise(torch.cat([x_BCTHW] * copies), torch.cat([t_B] * copies), x_mask=x_mask).float().chunk(copies)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, whose strength may change from step to step and from frame to frame (Open-Sora 1.3).

    scale: of the text; None or 1 = none. image_scale: of reference frames; None = no such frames, two copies do.
    order: which half of the doubled batch has the text.
    guided_channels: leading output channels that follow the guidance; the others keep the prediction with the text.
        None = all.
    oscillate_text, oscillate_image: that scale is 1 on odd steps from step `force_num` on, counted from 0.
    scale_image_weight: the image scale rises evenly over the frames, from 1 at the first to an upper value at the last;
        that value falls evenly over the steps, from image_scale to 1. Recorded numbers of Open-Sora 1.3 show the first
        frame only; the fall of the upper value is inferred from its description.
    rescale: share in which the guided prediction gets the standard deviation of the prediction with the text back (Lin
        et al. 2023, arXiv:2305.08891, eq. 15 and 16).
    """

    scale: float | None
    image_scale: float | None = None
    order: TextOrder = "cond,null"
    guided_channels: int | None = None
    oscillate_text: bool = False
    oscillate_image: bool = False
    force_num: int = 0
    scale_image_weight: bool = False
    rescale: float = 0.0

    @property
    def copies(self) -> int:
        """Copies of the batch that the model sees."""
        if self.image_scale is not None:
            return 3
        return 2 if is_guided(self.scale) else 1

    def predictor(self, denoise: Denoise) -> Predict:
        """`predict(x, t_B, x_mask)`: call `denoise` on the copies and combine its predictions; no scale may oscillate."""

        def predict(x_BCTHW: Tensor, t_B: Tensor, x_mask_BT: Tensor | None) -> Tensor:
            return self.combine(predict_copies(denoise, self.copies, x_BCTHW, t_B, x_mask_BT))

        return predict

    def combine(self, predictions: tuple[Tensor, ...], step: int = 0, steps: int = 1) -> Tensor:
        """One prediction [B, C, T, H, W] from those of the `copies`, at step `step` of `steps`."""
        if len(predictions) == 1:
            return predictions[0]
        text_scale = self._at_step(1.0 if self.scale is None else self.scale, self.oscillate_text, step)
        if self.image_scale is None:
            cond, null = predictions if self.order == "cond,null" else predictions[::-1]
            channels = cond.shape[1] if self.guided_channels is None else self.guided_channels
            cond, unguided, null = cond[:, :channels], cond[:, channels:], null[:, :channels]
            guided = null + text_scale * (cond - null)
        else:
            cond, null, uncond = predictions
            unguided = cond[:, cond.shape[1] :]
            image_scale = self._image_scale(self.image_scale, step, steps, like_BCTHW=uncond)
            guided = uncond + image_scale * (null - uncond) + text_scale * (cond - null)
        if self.rescale:
            std = [x.flatten(1).std(1).view(-1, 1, 1, 1, 1) for x in (cond, guided)]
            guided = guided * (self.rescale * std[0] / std[1].clamp(min=1e-12) + 1 - self.rescale)
        return torch.cat([guided, unguided], dim=1) if unguided.shape[1] else guided

    def _at_step(self, scale: float, oscillates: bool, step: int) -> float:
        return 1.0 if oscillates and step >= self.force_num and step % 2 == 1 else scale

    def _image_scale(self, image_scale: float, step: int, steps: int, like_BCTHW: Tensor) -> Tensor | float:
        now = self._at_step(image_scale, self.oscillate_image, step)
        if not self.scale_image_weight:
            return now
        upper = now + (1.0 - now) * step / max(steps - 1, 1)
        return over_frames(torch.linspace(1.0, upper, like_BCTHW.shape[2], device=like_BCTHW.device)[None])
