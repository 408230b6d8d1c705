"""The base of all samplers of noise-predicting models: training as in `iddpm`, guidance, and progress."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError
from opensora.schedulers.ddpm import IDDPM
from opensora.schedulers.guidance import Guidance, Predict, TextOrder
from opensora.schedulers.masking import edited_share
from opensora.schedulers.tables import NoiseSchedule
from opensora.schedulers.timesteps import Denoise, Progress, SampleRng, TrainingLoss


class EpsilonSampler(ABC):
    """Samples models that were trained with `iddpm`; its own training loss is that of `iddpm`.

    num_sampling_steps: steps of `sample`, each one call of the model or more: `num_model_calls` in all.
    cfg_scale: guidance scale that a sampling run uses when it names none; all latent channels follow it.
    noise_schedule, diffusion_steps, learn_sigma: the process that the model was trained on, see `iddpm`. A learned
        variance plays no part in sampling: the first half of the model's output is the noise.
    """

    name: str  # as registered, for messages
    text_order: TextOrder = "null,cond"
    masked_sampling = False
    image_text_order = ""  # no image guidance
    image_cfg_scale = 1.0

    def __init__(
        self,
        num_sampling_steps: int,
        cfg_scale: float,
        noise_schedule: NoiseSchedule,
        diffusion_steps: int,
        learn_sigma: bool,
    ):
        if num_sampling_steps < 1:
            raise ConfigError(
                f"scheduler.num_sampling_steps: {num_sampling_steps}; 1 or more are allowed; correct the config"
            )
        self.num_sampling_steps = num_sampling_steps
        self.num_model_calls = num_sampling_steps
        self.cfg_scale = cfg_scale
        self.process = IDDPM(noise_schedule=noise_schedule, diffusion_steps=diffusion_steps, learn_sigma=learn_sigma)
        self.num_timesteps = diffusion_steps
        self.learn_sigma = learn_sigma
        # Half the logarithm of a_bar: of the signal's share in x_t.
        self.log_alpha = 0.5 * torch.log(self.process.training_tables.alphas_cumprod)

    def training_loss(
        self,
        denoise: Denoise,
        x0_BCTHW: Tensor,
        draws: Sequence[SampleRng] | None = None,
        *,
        t_B: Tensor | None = None,
        noise: Tensor | None = None,
        x_mask_BT: Tensor | None = None,
        valid_BTHW: Tensor | None = None,
        size: tuple[int, int, int] | None = None,
    ) -> TrainingLoss:
        """See `IDDPM.training_loss`."""
        return self.process.training_loss(
            denoise, x0_BCTHW, draws, t_B=t_B, noise=noise, x_mask_BT=x_mask_BT, valid_BTHW=valid_BTHW, size=size
        )

    def add_noise(self, x0_BCTHW: Tensor, noise_BCTHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t as in `iddpm`, for timesteps between two of the table as well, as samplers visit them."""
        log_alpha = interpolate(self.log_alpha, t_B.detach().cpu().double())
        shares = (log_alpha.exp(), sigma(log_alpha))
        alpha_t, sigma_t = (share.to(x0_BCTHW).view(-1, 1, 1, 1, 1) for share in shares)
        return alpha_t * x0_BCTHW + sigma_t * noise_BCTHW

    def target(self, x0_BCTHW: Tensor, noise_BCTHW: Tensor) -> Tensor:
        """The training target of the first half of the output."""
        return self.process.target(x0_BCTHW, noise_BCTHW)

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        noise_BCTHW: Tensor,
        rngs: Sequence[Generator],
        *,
        guidance_scale: float | None = None,
        mask_BT: Tensor | None = None,
        size: tuple[int, int, int] | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Latents [B, C, T, H, W] from noise.

        guidance_scale: None or 1 = the model's own prediction; otherwise `denoise` gets the doubled batch, text stacked as
            `text_order` says, which is not the order of `iddpm`.
        mask_BT: one share between 0 and 1 for all frames, to which `noise_BCTHW` is a clip that is noised first.
        rngs: one per sample, for the noise of the steps, where there is any. size: not used.
        progress: called for every finished step, which may take several model calls. ConfigError for another mask_BT.
        """
        start = 1.0 if mask_BT is None else edited_share(mask_BT)
        if start is None:
            raise ConfigError(
                f"scheduler: {self.name} with a frame mask; it samples and edits whole clips only; use iddpm, which samples the"
                " same models and takes masks"
            )
        channels = noise_BCTHW.shape[1]
        predict_all = Guidance(guidance_scale, order=self.text_order).predictor(denoise)

        def predict(x_BCTHW: Tensor, t_B: Tensor, x_mask_BT: Tensor | None) -> Tensor:
            return predict_all(x_BCTHW, t_B, x_mask_BT)[:, :channels]

        latents_BCTHW, reported = noise_BCTHW, 0
        steps = self.iter_latents(predict, noise_BCTHW.float(), rngs, start)
        for calls, latents_BCTHW in enumerate(steps, start=1):  # noqa: B007 - the last one is the result
            done = calls * self.num_sampling_steps // self.num_model_calls
            if progress is not None and done > reported:
                progress(done, self.num_sampling_steps)
            reported = done
        return latents_BCTHW

    @abstractmethod
    def iter_latents(
        self, predict: Predict, noise_BCTHW: Tensor, rngs: Sequence[Generator], start: float = 1.0
    ) -> Iterator[Tensor]:
        """The latents after every call of the model; `predict` returns the guided noise [B, C, T, H, W].

        start: below 1, `noise_BCTHW` is a clip, noised at the first step at or below that share of the process. The steps
        before it call nothing.
        """


def first_step(times: Sequence[float], start: float) -> int:
    """The number of the first of falling `times` that is at or below `start`; the last one where none is."""
    return next((step for step, time in enumerate(times) if time <= start), len(times) - 1)


def interpolate(table: Tensor, position: Tensor) -> Tensor:
    """Values of a table between its entries, on straight lines that go on beyond both ends."""
    left = position.floor().long().clamp(0, len(table) - 2)
    return table[left] + (position - left) * (table[left + 1] - table[left])


def sigma(log_alpha: Tensor) -> Tensor:
    """The share of noise in x_t, sqrt(1 - a_bar), from half the logarithm of a_bar."""
    return torch.sqrt(-torch.expm1(2 * log_alpha))


def log_ratio(log_alpha: Tensor) -> Tensor:
    """lambda, the logarithm of signal over noise."""
    return log_alpha - torch.log(sigma(log_alpha))
