"""Training a video autoencoder: reconstruct clips, keep the latents near a normal distribution.

Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix G (KL-regularised first stage).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from opensora.evaluation.psnr import psnr
from opensora.random import Draw
from opensora.training.task import StepLoss
from opensora.types import Batch

STATISTICS_CLIPS = 64  # clips whose latents give the mean and the spread that diffusion normalises by


@dataclass
class AutoencoderTask:
    trained: Any  # a registered autoencoder
    seed: int
    reconstruction: Literal["l1", "l2"]
    kl_weight: float
    device: torch.device
    statistics_clips: Callable[[], Iterator[Batch]]  # the same batches at every call

    def step(self, model: Callable[..., Any], batch: Batch) -> StepLoss:
        video = batch.video_BCTHW.to(self.device)
        rngs = [Draw(self.seed, batch.step, place).rng("latent") for place in batch.places]
        output, posterior = model(video, rngs)
        difference = output.float() - video
        pixels = difference.abs() if self.reconstruction == "l1" else difference.square()
        numel = video[0].numel()
        # a mean over pixels, and the KL sum on the same scale: the ratio is that of two sums
        loss_B = pixels.flatten(1).mean(1) + self.kl_weight * posterior.kl().float() / numel
        return StepLoss(loss_B, None, posterior.mean[:, 0].numel())

    @torch.no_grad()
    def validate(self, model: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, float]:
        """Mean PSNR in decibels of reconstructions from the posterior's mode."""
        figures = []
        for batch in batches:
            video = batch.video_BCTHW.to(self.device)
            output, _ = model(video, None)
            figures.append(psnr(output.float().clamp(-1, 1), video))
        return {"psnr": torch.cat(figures).mean().item()}

    def config(self) -> dict[str, Any]:
        """The autoencoder's config with the latent statistics measured by the weights as they are now."""
        shift, scale = self._latent_statistics()
        return {**self.trained.config, "latent_shift": shift, "latent_scale": scale}

    @torch.no_grad()
    def _latent_statistics(self) -> tuple[list[float], list[float]]:
        """Per-channel shift and scale that give training latents mean 0 and deviation 1: (z - shift) * scale."""
        dtype = next(self.trained.parameters()).dtype
        clips = (batch.video_BCTHW.to(self.device, dtype) for batch in self.statistics_clips())
        means = [self.trained.posterior(clip).mode().float() for clip in clips]
        latents = torch.cat([mean.transpose(0, 1).flatten(1) for mean in means], dim=1)
        return latents.mean(1).tolist(), (1 / latents.std(1).clamp_min(1e-6)).tolist()
