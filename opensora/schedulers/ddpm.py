"""IDDPM: a discrete diffusion process whose model predicts the noise and, by default, the variance.

The model gets the timestep of the full process, 0 (nearly data) to diffusion_steps - 1 (noise). With learn_sigma its
output has twice the latent channels: the noise, and where the log-variance lies between its bounds.
Sources: Ho et al. 2020, arXiv:2006.11239; Nichol & Dhariwal 2021, arXiv:2102.09672; Song et al. 2020, arXiv:2010.02502
(DDIM). Rounding, guided channels and frame masks are those of Open-Sora 1.0 and 1.1.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError
from opensora.registry import SCHEDULERS
from opensora.schedulers.guidance import Guidance, TextOrder
from opensora.schedulers.likelihood import binned_normal_log_likelihood, normal_kl
from opensora.schedulers.masking import choose_frames, edited_share, mean_over_frames
from opensora.schedulers.tables import DiffusionTables, NoiseSchedule, keep_timesteps, make_betas, make_tables
from opensora.schedulers.timesteps import (
    Denoise,
    Progress,
    SampleRng,
    StepNoise,
    TrainingLoss,
    per_sample_noise,
    sample_t_and_noise,
)


class Step(NamedTuple):
    """The model's prediction of one reverse step, each [B, C, T, H, W]."""

    mean: Tensor  # of p(x_{t-1} | x_t)
    log_variance: Tensor
    x0: Tensor  # the predicted clean latents


@SCHEDULERS.register_module(name="iddpm")
class IDDPM:
    """Improved denoising diffusion.

    num_sampling_steps: steps of `sample`, spread over the full process; None = every step. Training keeps all.
    timestep_respacing: "n", "a,b,c" or "ddimN" steps, in training and sampling alike; not with num_sampling_steps.
    use_kl: train on the variational bound alone. predict_xstart: the model predicts x_0 instead of the noise.
    learn_sigma: False = fixed variance, beta, or with sigma_small the posterior's.
    rescale_learned_sigmas: weigh the bound by steps / 1000.
    cfg_scale: guidance scale that a sampling run uses when it names none.
    cfg_channel: leading channels that follow the guidance: 3 in Open-Sora's releases, whatever the latents have; None =
        all latent channels.
    sampler, eta: "ddpm", or "ddim" with eta times the noise of ddpm. clip_denoised: keep x_0 in [-1, 1].
    table_dtype: "float64" as in Open-Sora 1.0, "float32" as in 1.1; after some steps they differ visibly.
    """

    text_order: TextOrder = "cond,null"
    masked_sampling = True
    image_text_order = ""  # no image guidance
    image_cfg_scale = 1.0

    def __init__(
        self,
        num_sampling_steps: int | None = None,
        timestep_respacing: str | Sequence[int] | None = None,
        noise_schedule: NoiseSchedule = "linear",
        use_kl: bool = False,
        sigma_small: bool = False,
        predict_xstart: bool = False,
        learn_sigma: bool = True,
        rescale_learned_sigmas: bool = False,
        diffusion_steps: int = 1000,
        cfg_scale: float = 4.0,
        cfg_channel: int | None = 3,
        sampler: Literal["ddpm", "ddim"] = "ddpm",
        eta: float = 0.0,
        clip_denoised: bool = False,
        table_dtype: Literal["float64", "float32"] = "float64",
    ):
        _check(num_sampling_steps, timestep_respacing, diffusion_steps, cfg_channel, sampler, eta, table_dtype)
        betas = make_betas(noise_schedule, diffusion_steps)
        dtype = getattr(torch, table_dtype)
        respacing = timestep_respacing or ""
        self.training_tables = make_tables(betas, keep_timesteps(diffusion_steps, respacing), dtype)
        if num_sampling_steps is not None:
            respacing = str(num_sampling_steps)
        self.sampling_tables = make_tables(betas, keep_timesteps(diffusion_steps, respacing), dtype)
        self.num_timesteps = diffusion_steps
        self.num_sampling_steps = self.sampling_tables.num_timesteps
        self.use_kl = use_kl
        self.sigma_small = sigma_small
        self.predict_xstart = predict_xstart
        self.learn_sigma = learn_sigma
        self.rescale_learned_sigmas = rescale_learned_sigmas
        self.cfg_scale = cfg_scale
        self.cfg_channel = cfg_channel
        self.sampler = sampler
        self.eta = eta
        self.clip_denoised = clip_denoised

    def add_noise(self, x0_BCTHW: Tensor, noise_BCTHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t = sqrt(a_bar) x_0 + sqrt(1 - a_bar) noise; even t = 0 is not quite clean."""
        return _noised(self.training_tables, x0_BCTHW, noise_BCTHW, self.training_tables.index_of(t_B))

    def target(self, x0_BCTHW: Tensor, noise_BCTHW: Tensor) -> Tensor:
        """The training target of the first half of the output."""
        return x0_BCTHW if self.predict_xstart else noise_BCTHW

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
        """Squared error of the noise plus, for a learned variance, the variational bound in bits (terms mse, vb).

        Frames where the mask is False are noised as at t = 0 and do not count. draws: one per sample, for what `t_B`
        (timesteps of the full process) and `noise` leave open. valid_BTHW: 1 where the latents hold a clip, 0 where they
        are padding, whose error does not count. As in Open-Sora-Plan the sum is still divided by the number of all
        latents, so padded clips weigh less. size: not used, all sizes are noised alike.
        ConfigError for a mask with use_kl.
        """
        if self.use_kl and x_mask_BT is not None:
            raise ConfigError(
                "scheduler.use_kl: frame masks with the variational bound alone; masks work with the default loss only;"
                " set use_kl=False or remove mask_ratios"
            )
        tables = self.training_tables
        sampled = sample_t_and_noise(x0_BCTHW, draws, self._draw_timestep, t_B, noise)
        index_B, noise, x0_BCTHW = tables.index_of(sampled.t_B), sampled.noise_BCTHW, x0_BCTHW.float()
        t_B = sampled.t_B.to(x0_BCTHW.device, torch.float32)
        x_t = _noised(tables, x0_BCTHW, noise, index_B)
        x_t = choose_frames(x_mask_BT, x_t, _noised(tables, x0_BCTHW, noise, torch.zeros_like(index_B)))
        prediction, values = self._split(denoise(x_t, t_B, x_mask=x_mask_BT).float(), x0_BCTHW.shape[1])
        if self.use_kl:
            loss_B = self._variational_bound(tables, x0_BCTHW, x_t, index_B, prediction, values, None, valid_BTHW)
            loss_B = loss_B * tables.num_timesteps
            return TrainingLoss(loss_B, t_B, {})
        error = _where_valid((self.target(x0_BCTHW, noise) - prediction).square(), valid_BTHW)
        mse_B = mean_over_frames(error, x_mask_BT)
        if values is None:
            return TrainingLoss(mse_B, t_B, {"mse": mse_B.detach()})
        # Only the variance learns from the bound; the noise would follow its far noisier gradient.
        vb_B = self._variational_bound(
            tables, x0_BCTHW, x_t, index_B, prediction.detach(), values, x_mask_BT, valid_BTHW
        )
        if self.rescale_learned_sigmas:
            vb_B = vb_B * tables.num_timesteps / 1000
        return TrainingLoss(mse_B + vb_B, t_B, {"mse": mse_B.detach(), "vb": vb_B.detach()})

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
        step_noise: StepNoise | None = None,
    ) -> Tensor:
        """Latents [B, C, T, H, W] from noise.

        guidance_scale: None or 1 = the model's own prediction; otherwise `denoise` gets the doubled batch, text stacked as
            `text_order` says.
        mask_BT: 0 = `noise_BCTHW` holds the wanted frame, though the last step still touches it; 1 = generate,
            between = noise the given frame that far first.
        rngs: one per sample, for the noise of the steps; `step_noise` takes their place. size: not used.
        """
        latents_BCTHW = noise_BCTHW
        steps = self.iter_latents(denoise, noise_BCTHW, step_noise or per_sample_noise(rngs), guidance_scale, mask_BT)
        for done, (latents_BCTHW, _) in enumerate(steps, start=1):  # noqa: B007 - the last one is the result
            if progress is not None:
                progress(done, self.num_sampling_steps)
        return latents_BCTHW

    def iter_latents(
        self,
        denoise: Denoise,
        noise_BCTHW: Tensor,
        step_noise: StepNoise,
        guidance_scale: float | None = None,
        mask_BT: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """After every step: the latents, and the predicted clean latents."""
        tables = self.sampling_tables
        x = noise_BCTHW.float()
        channels = x.shape[1]
        guided_channels = channels if self.cfg_channel is None else self.cfg_channel
        predict = Guidance(guidance_scale, guided_channels=guided_channels).predictor(denoise)
        # The step at which a frame joins: steps are counted down, a frame of mask 1 is there from the first, and one of
        # mask 0 goes through the very last step, where a_bar is 0.9999, as in Open-Sora 1.1.
        joins_BT = None if mask_BT is None else (mask_BT.to(x.device) * tables.num_timesteps).int()
        edited = edited_share(mask_BT) is not None
        for step in reversed(range(tables.num_timesteps)):
            index_B = torch.full((len(x),), step)
            start, active_BT = x, None
            if joins_BT is not None:
                x = choose_frames(joins_BT == step, _noised(tables, x, step_noise(x), index_B), x)
                active_BT = joins_BT > step
                if edited:
                    active_BT = None  # all frames are noised alike
                    if int(joins_BT.max()) < step:
                        yield x, x
                        continue
            t_B = tables.timestep_map[index_B].to(x.device, torch.float32)
            prediction, values = self._split(predict(x, t_B, active_BT), channels)
            back = self._step_back(tables, x, index_B, prediction, values, self.clip_denoised)
            if self.sampler == "ddim":
                x = self._ddim(tables, x, index_B, back.x0, step_noise)
            else:
                # Drawn at the last step too, where it does not count, so that every step draws alike.
                x = back.mean + (step > 0) * torch.exp(0.5 * back.log_variance) * step_noise(x)
            if joins_BT is not None:
                x = choose_frames(joins_BT < step, start, x)
            yield x, back.x0

    def _draw_timestep(self, rng: Generator) -> Tensor:
        kept = self.training_tables.timestep_map
        return kept[torch.randint(0, len(kept), (1,), generator=rng)]

    def _split(self, output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        """The prediction, and the values of a learned variance."""
        if not self.learn_sigma:
            return output[:, :channels], None
        if output.shape[1] != 2 * channels:
            raise ConfigError(
                f"scheduler.learn_sigma: the model gives {output.shape[1]} channels for latents of {channels}; a learned"
                f" variance needs {2 * channels}; set model.pred_sigma=True or scheduler.learn_sigma=False"
            )
        return output[:, :channels], output[:, channels:]

    def _step_back(
        self,
        tables: DiffusionTables,
        x_t: Tensor,
        index_B: Tensor,
        prediction: Tensor,
        values: Tensor | None,
        clip: bool,
    ) -> Step:
        x0 = prediction
        if not self.predict_xstart:
            x0 = _at(tables.sqrt_recip_alphas_cumprod, index_B, x_t) * x_t
            x0 = x0 - _at(tables.sqrt_recipm1_alphas_cumprod, index_B, x_t) * prediction
        if clip:
            x0 = x0.clamp(-1, 1)
        return Step(_posterior_mean(tables, x0, x_t, index_B), self._log_variance(tables, x_t, index_B, values), x0)

    def _log_variance(self, tables: DiffusionTables, x_t: Tensor, index_B: Tensor, values: Tensor | None) -> Tensor:
        smallest = _at(tables.posterior_log_variance_clipped, index_B, x_t)
        if values is not None:  # arXiv:2102.09672, eq. 15
            share = (values + 1) / 2
            return share * _at(torch.log(tables.betas), index_B, x_t) + (1 - share) * smallest
        if self.sigma_small:
            return smallest.expand_as(x_t)
        largest = torch.log(torch.cat([tables.posterior_variance[1:2], tables.betas[1:]]))
        return _at(largest, index_B, x_t).expand_as(x_t)

    def _variational_bound(
        self,
        tables: DiffusionTables,
        x0: Tensor,
        x_t: Tensor,
        index_B: Tensor,
        prediction: Tensor,
        values: Tensor | None,
        x_mask_BT: Tensor | None,
        valid_BTHW: Tensor | None,
    ) -> Tensor:
        """The term of the variational bound for this timestep, bits per element, [B]."""
        model = self._step_back(tables, x_t, index_B, prediction, values, clip=False)
        true_log_variance = _at(tables.posterior_log_variance_clipped, index_B, x_t)
        kl = normal_kl(_posterior_mean(tables, x0, x_t, index_B), true_log_variance, model.mean, model.log_variance)
        nll = -binned_normal_log_likelihood(x0, model.mean, 0.5 * model.log_variance)
        kl_B, nll_B = (mean_over_frames(_where_valid(nats, valid_BTHW), x_mask_BT) for nats in (kl, nll))
        return torch.where(index_B.to(x_t.device) == 0, nll_B, kl_B) / math.log(2)

    def _ddim(self, tables: DiffusionTables, x: Tensor, index_B: Tensor, x0: Tensor, step_noise: StepNoise) -> Tensor:
        """arXiv:2010.02502, eq. 12 and 16."""
        eps = (_at(tables.sqrt_recip_alphas_cumprod, index_B, x) * x - x0) / _at(
            tables.sqrt_recipm1_alphas_cumprod, index_B, x
        )
        now, then = _at(tables.alphas_cumprod, index_B, x), _at(tables.alphas_cumprod_prev, index_B, x)
        sigma = self.eta * torch.sqrt((1 - then) / (1 - now)) * torch.sqrt(1 - now / then)
        mean = x0 * torch.sqrt(then) + torch.sqrt((1 - then - sigma**2).clamp(min=0)) * eps
        return mean if self.eta == 0 else mean + sigma * step_noise(x)  # sigma is 0 at the last step


def _check(
    num_sampling_steps: int | None,
    timestep_respacing: str | Sequence[int] | None,
    diffusion_steps: int,
    cfg_channel: int | None,
    sampler: str,
    eta: float,
    table_dtype: str,
) -> None:
    if num_sampling_steps is not None and timestep_respacing:
        raise ConfigError(
            f"scheduler: num_sampling_steps={num_sampling_steps} and timestep_respacing={timestep_respacing!r}; both say"
            " which steps to take; keep one of the two"
        )
    if diffusion_steps < 2:
        raise ConfigError(f"scheduler.diffusion_steps: {diffusion_steps}; at least 2 are needed; raise it")
    if cfg_channel is not None and cfg_channel < 1:
        raise ConfigError(f"scheduler.cfg_channel: {cfg_channel}; 1 or more, or None for all channels; change it")
    if sampler not in ("ddpm", "ddim"):
        raise ConfigError(f"scheduler.sampler: {sampler!r}; 'ddpm' or 'ddim' are allowed; choose one")
    if not 0 <= eta <= 1 or (eta and sampler != "ddim"):
        raise ConfigError(f"scheduler.eta: {eta} with sampler={sampler!r}; 0 to 1, and only with 'ddim'; change it")
    if table_dtype not in ("float64", "float32"):
        raise ConfigError(f"scheduler.table_dtype: {table_dtype!r}; 'float64' or 'float32' are allowed; choose one")


def _at(table: Tensor, index_B: Tensor, like: Tensor) -> Tensor:
    """Entries of a table for each sample, float32 [B, 1, 1, 1, 1]."""
    return table[index_B].to(like.device, torch.float32).view(-1, 1, 1, 1, 1)


def _where_valid(values_BCTHW: Tensor, valid_BTHW: Tensor | None) -> Tensor:
    return values_BCTHW if valid_BTHW is None else values_BCTHW * valid_BTHW[:, None].to(values_BCTHW)


def _noised(tables: DiffusionTables, x0: Tensor, noise: Tensor, index_B: Tensor) -> Tensor:
    signal = _at(torch.sqrt(tables.alphas_cumprod), index_B, x0)
    return signal * x0 + _at(torch.sqrt(1.0 - tables.alphas_cumprod), index_B, x0) * noise


def _posterior_mean(tables: DiffusionTables, x0: Tensor, x_t: Tensor, index_B: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x_0), arXiv:2006.11239, eq. 7."""
    return _at(tables.posterior_mean_coef1, index_B, x_t) * x0 + _at(tables.posterior_mean_coef2, index_B, x_t) * x_t
