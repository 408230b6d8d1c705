"""Training a denoiser: clips and captions -> latents and text states -> noise -> loss."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor

from opensora.datasets.frame_masks import FrameConditions, FrameMasks
from opensora.models.assemble import tokens
from opensora.models.codec import Codec
from opensora.models.conditions import clip_conditions, given_latents
from opensora.random import Draw
from opensora.training.task import StepLoss
from opensora.types import Batch

VALIDATION_STEP = -1  # validation draws belong to no optimizer step


@dataclass
class DiffusionTask:
    trained: Any  # a registered denoiser
    codec: Codec
    scheduler: Any
    seed: int
    model_config: dict[str, Any]
    run_record: dict[str, Any]
    masks: FrameMasks | FrameConditions | None = None  # which frames of a clip are given in training

    def step(self, model: Callable[..., Any], batch: Batch) -> StepLoss:
        draws = [Draw(self.seed, batch.step, place) for place in batch.places]
        return self._loss(model, batch, draws, self._drops(draws), self.masks)

    def _drops(self, draws: list[Draw]) -> Tensor:
        """Which samples train without their caption, for classifier-free guidance (Ho & Salimans 2022)."""
        rate = self.trained.class_dropout_prob
        return torch.tensor([torch.rand((), generator=draw.rng("caption drop")).item() < rate for draw in draws])

    def _loss(
        self,
        model: Callable[..., Any],
        batch: Batch,
        draws: list[Draw],
        drop_B: Tensor,
        masks: FrameMasks | FrameConditions | None = None,
    ) -> StepLoss:
        latents = self.codec.encode_video(batch.video_BCTHW, [draw.rng("latent") for draw in draws])
        text = self.codec.encode_text(batch.captions)
        size = (batch.video_BCTHW.shape[2], batch.video_BCTHW.shape[3], batch.video_BCTHW.shape[4])
        told = clip_conditions(self.trained, size, batch.fps_B.to(latents.device))
        denoise = partial(model, y=text.text_B1LC, mask=text.mask_BL, drop_B=drop_B.to(latents.device), **told)
        x_mask_BT = None
        if self.trained.conditioned:  # always told, with or without given frames, so that both mean what sampling says
            given = draw_given(masks, latents.shape[2], draws) if isinstance(masks, FrameConditions) else []
            y_null = self.trained.null_text(len(draws)).to(text.text_B1LC)
            denoise = partial(denoise, **given_latents(latents, given, y_null))
        elif isinstance(masks, FrameMasks):
            x_mask_BT = draw_masks(masks, latents.shape[2], draws).to(latents.device)
        out = self.scheduler.training_loss(denoise, latents, draws, x_mask_BT=x_mask_BT, size=size)
        level_B = out.t_B.float() / self.scheduler.num_timesteps
        return StepLoss(out.loss_B, level_B, tokens(self.trained) * len(draws))

    @torch.no_grad()
    def validate(self, model: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, float]:
        """Mean loss with noise fixed by the seed, so that two checkpoints see the same question. No frame is given."""
        losses = []
        for batch in batches:
            draws = [Draw(self.seed, VALIDATION_STEP, place) for place in batch.places]
            losses.append(self._loss(model, batch, draws, torch.zeros(len(draws), dtype=torch.bool)).loss_B)
        return {"loss": torch.cat(losses).mean().item()}

    def config(self) -> dict[str, Any]:
        return {**self.model_config, "run": self.run_record}


def draw_masks(masks: FrameMasks, frames: int, draws: Sequence[Draw]) -> Tensor:
    """Bool [B, T]: each sample's own mask, whatever rank and micro-batch it is in."""
    rngs = [draw.rng("frame mask") for draw in draws]
    return torch.stack([masks.draw(frames, Random(rng.initial_seed()), rng) for rng in rngs])


def draw_given(conditions: FrameConditions, frames: int, draws: Sequence[Draw]) -> list[list[int]]:
    """The numbers of each sample's given frames, whatever rank and micro-batch it is in."""
    return [conditions.draw(frames, Random(draw.rng("given frames").initial_seed())) for draw in draws]
