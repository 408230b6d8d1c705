"""Training a denoiser: clips and captions -> latents and text states -> noise -> loss."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, ClassVar

import torch
from torch import Tensor

from opensora.datasets.frame_masks import FrameConditions, FrameMasks
from opensora.interfaces import Autoencoder, Denoiser, Scheduler
from opensora.models.build import num_tokens
from opensora.models.clip_conditioning import clip_conditioning
from opensora.models.codec import Codec
from opensora.models.frame_conditioning import frame_conditioning
from opensora.rng import Draw
from opensora.training.image_joint import encode_clips, text_and_images, valid_latents
from opensora.training.step_stats import BINS, bin_name, noise_bins
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch

VALIDATION_STEP = -1  # validation draws belong to no optimizer step: noise level k takes those of step -1 - k
_BIN_NAMES = [f"loss_bin/{bin_name(index)}" for index in range(BINS)]


@dataclass
class DiffusionTask:
    trained: Denoiser
    codec: Codec
    scheduler: Scheduler
    seed: int
    model_config: dict[str, Any]
    run_record: dict[str, Any]
    masks: FrameMasks | FrameConditions | None = None  # which frames of a clip are given in training
    validation_levels: int = BINS  # noise levels at which the loss of a validation clip is measured
    discriminator: ClassVar[None] = None
    measures_weights: ClassVar[bool] = False

    @property
    def autoencoder(self) -> Autoencoder:
        return self.codec.vae

    def loss(self, model: Callable[..., Any], batch: Batch) -> MicroBatchLoss:
        draws = [Draw(self.seed, batch.step, sample_id) for sample_id in batch.sample_ids]
        latents = encode_clips(self.codec, batch, draws)
        return self._loss(model, batch, latents, draws, self._drops(draws), self.masks)

    def _drops(self, draws: list[Draw]) -> Tensor:
        """Bool [B]: samples that train without their caption, for classifier-free guidance (Ho & Salimans 2022)."""
        rate = self.trained.class_dropout_prob
        return torch.tensor([torch.rand((), generator=draw.rng("caption drop")).item() < rate for draw in draws])

    def _loss(
        self,
        model: Callable[..., Any],
        batch: Batch,
        latents: Tensor,
        draws: list[Draw],
        drop_B: Tensor,
        masks: FrameMasks | FrameConditions | None = None,
        t_B: Tensor | None = None,
    ) -> MicroBatchLoss:
        """The loss of latents that are encoded already; `t_B` None draws timesteps as training does."""
        text = self.codec.encode_text(batch.captions)
        size = batch.clip_size
        kwargs: dict[str, Any] = {"drop_B": drop_B.to(latents.device)}
        kwargs |= clip_conditioning(self.trained, size, batch.fps_B.to(latents.device))
        kwargs |= text_and_images(batch, text, latents)
        x_mask_BT = None
        if self.trained.conditioned:  # passed with and without given frames, so that both mean what sampling says
            given_frames = draw_given(masks, latents.shape[2], draws) if isinstance(masks, FrameConditions) else []
            y_null = self.trained.null_text(len(draws))
            assert y_null is not None, "a conditioned denoiser has a null caption"
            kwargs |= frame_conditioning(latents, given_frames, y_null.to(text.text_B1LC))
        elif isinstance(masks, FrameMasks):
            x_mask_BT = draw_masks(masks, latents.shape[2], draws).to(latents.device)
        out = self.scheduler.training_loss(
            partial(model, **kwargs),
            latents,
            draws,
            t_B=t_B,
            x_mask_BT=x_mask_BT,
            size=size,
            **valid_latents(batch, latents),
        )
        noise_level_B = out.t_B.float() / self.scheduler.num_timesteps
        return MicroBatchLoss(out.loss_B, noise_level_B, num_tokens(self.trained, latents.shape[2:]) * len(draws))

    @torch.no_grad()
    def validate(self, model: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, tuple[float, int]]:
        """The loss, and the loss in each tenth of the noise scale, as (sum, samples). No frame is given.

        Every clip is measured at `validation_levels` noise levels spread evenly over the scale, whatever levels
        training prefers, with noise fixed by the seed, so that two checkpoints are measured alike.
        """
        losses, bins = [], []
        for batch in batches:
            first = [Draw(self.seed, VALIDATION_STEP, sample_id) for sample_id in batch.sample_ids]
            latents = encode_clips(self.codec, batch, first)
            within_B = torch.cat([torch.rand(1, generator=draw.rng("validation level")) for draw in first])
            for level in range(self.validation_levels):
                draws = [Draw(self.seed, VALIDATION_STEP - level, sample_id) for sample_id in batch.sample_ids]
                # whole timesteps, for discrete schedulers have no others
                t_B = ((level + within_B) / self.validation_levels * self.scheduler.num_timesteps).floor()
                drop_B = torch.zeros(len(draws), dtype=torch.bool)
                loss = self._loss(model, batch, latents, draws, drop_B, t_B=t_B)
                losses.append(loss.loss_B.cpu().double())
                bins.append(noise_bins(t_B / self.scheduler.num_timesteps))
        if not losses:
            return dict.fromkeys(("loss", *_BIN_NAMES), (0.0, 0))
        loss_N, bin_N = torch.cat(losses), torch.cat(bins)
        parts = {name: loss_N[bin_N == index] for index, name in enumerate(_BIN_NAMES)}
        return {name: (part.sum().item(), len(part)) for name, part in {"loss": loss_N, **parts}.items()}

    def config(self) -> dict[str, Any]:
        return {**self.model_config, "run": self.run_record}


def draw_masks(masks: FrameMasks, frames: int, draws: Sequence[Draw]) -> Tensor:
    """Bool [B, T]: each sample's own mask, whatever rank and micro-batch it is in."""
    rngs = [draw.rng("frame mask") for draw in draws]
    return torch.stack([masks.draw(frames, Random(rng.initial_seed()), rng) for rng in rngs])


def draw_given(conditions: FrameConditions, frames: int, draws: Sequence[Draw]) -> list[list[int]]:
    """The numbers of each sample's given frames, whatever rank and micro-batch it is in."""
    return [conditions.draw(frames, Random(draw.rng("given frames").initial_seed())) for draw in draws]
