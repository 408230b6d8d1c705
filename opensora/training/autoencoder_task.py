"""Training a video autoencoder: reconstruct clips, keep the latents near a normal distribution.

With a perceptual distance and a discriminator reconstructions are sharp as well as close.
Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix G (KL-regularized first stage).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from opensora.evaluation.psnr import psnr
from opensora.evaluation.ssim import TAPS, ssim_frames
from opensora.interfaces import Autoencoder
from opensora.rng import Draw
from opensora.training.autoencoder_losses import Distance, perceptual_error, reconstruction_error
from opensora.training.clip_lengths import ClipLengths
from opensora.training.discriminator_trainer import DiscriminatorTrainer
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch

STATISTICS_CLIPS = 64  # clips whose latents give the mean and the deviation that diffusion normalizes by


@dataclass
class AutoencoderTask:
    trained: Autoencoder
    seed: int
    reconstruction: Literal["l1", "l2"]
    kl_weight: float
    device: torch.device
    statistics_clips: Callable[[], Iterator[Batch]]  # the same batches at every call
    perceptual: Distance | None = None
    perceptual_weight: float = 1.0  # of the perceptual distance, next to a mean over pixels
    discriminator: DiscriminatorTrainer | None = None
    reconstructs_latents: bool = False  # the loss is on spatial latents, see OpenSoraVAE_V1_2
    identity_weight: float = 0.0  # of the distance of a single frame's latent from its spatial latent
    lengths: ClipLengths | None = None  # None: every step takes whole clips
    validation_distance: tuple[str, Distance] | None = None  # its name in the metrics of validation

    measures_weights: ClassVar[bool] = True

    @property
    def autoencoder(self) -> Autoencoder:
        return self.trained

    def loss(self, model: Callable[..., Any], batch: Batch) -> MicroBatchLoss:
        frames = None if self.lengths is None else self.lengths.frames(batch.step)
        video = batch.video_BCTHW[:, :, :frames].to(self.device)
        rngs = [Draw(self.seed, batch.step, sample_id).rng("latent") for sample_id in batch.sample_ids]
        if self.reconstructs_latents:
            return self._latent_loss(model, video, rngs)
        output, posterior = model(video, rngs)
        output = output.float()
        error_B = reconstruction_error(video, output, self.reconstruction)
        metrics = {} if self.perceptual is None and self.discriminator is None else {"pixels": error_B.detach().mean()}
        if self.perceptual is not None:
            distance_B = perceptual_error(video, output, self.perceptual)
            metrics["perceptual"] = distance_B.detach().mean()
            error_B = error_B + self.perceptual_weight * distance_B
        # a mean over pixels, and the KL sum on the same scale: the ratio is that of two sums
        loss_B = error_B + self.kl_weight * posterior.kl().float() / video[0].numel()
        pair = None
        if self.discriminator is not None and batch.step >= self.discriminator.start_step:
            gan_B, gan_metrics = self.discriminator.generator_loss(output, error_B, self.trained.last_layer)
            loss_B, metrics, pair = loss_B + gan_B, {**metrics, **gan_metrics}, (video, output.detach())
        return MicroBatchLoss(loss_B, None, posterior.mean[:, 0].numel(), metrics, pair)

    def _latent_loss(self, model: Callable[..., Any], video: Tensor, rngs: list[Generator]) -> MicroBatchLoss:
        output, posterior, target, latents = model(video, rngs, reconstruct_latents=True)
        error_B = reconstruction_error(target, output, self.reconstruction)
        metrics = {"latents": error_B.detach().mean()}
        if self.identity_weight and video.shape[2] == 1:
            identity_B = reconstruction_error(target, latents, self.reconstruction)
            metrics["identity"] = identity_B.detach().mean()
            error_B = error_B + self.identity_weight * identity_B
        # next to a mean over the numbers that are reconstructed, as in `loss`
        loss_B = error_B + self.kl_weight * posterior.kl().float() / target[0].numel()
        return MicroBatchLoss(loss_B, None, posterior.mean[:, 0].numel(), metrics)

    @torch.no_grad()
    def validate(self, model: Callable[..., Any], batches: Iterable[Batch]) -> dict[str, tuple[float, int]]:
        """Reconstructions from the posterior's mode against the clips, (sum, clips) of each.

        PSNR in decibels, SSIM where frames hold its window, and the distance of `validation_distance`.
        """
        values: dict[str, list[Tensor]] = {}
        for batch in batches:
            video = batch.video_BCTHW.to(self.device)
            output = model(video, None)[0].float()
            for name, value_B in self._measure(video, output).items():
                values.setdefault(name, []).append(value_B.cpu().double())
        return {name: (torch.cat(parts).sum().item(), sum(map(len, parts))) for name, parts in values.items()}

    def _measure(self, video_BCTHW: Tensor, output_BCTHW: Tensor) -> dict[str, Tensor]:
        """Figures of each clip, [B]."""
        video, output = video_BCTHW.cpu(), output_BCTHW.cpu()  # some devices have no float64
        figures = {"psnr": psnr(output, video)}
        if min(video.shape[3:]) >= TAPS:
            frames = ((clip.clamp(-1, 1).transpose(1, 2) + 1) / 2 for clip in (output, video))
            figures["ssim"] = ssim_frames(*frames).mean(1)
        if self.validation_distance is not None:
            name, distance = self.validation_distance
            figures[name] = perceptual_error(video_BCTHW, output_BCTHW, distance)
        return figures

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
