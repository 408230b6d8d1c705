"""Rectified flow: x_t = (1 - tau) x_0 + tau noise with tau = t / num_timesteps; the model learns v = x_0 - noise.

t runs from 0 (data) to num_timesteps (noise). Where the model has twice the latent channels, the first half is v.
Source: Liu et al. 2022, arXiv:2209.03003, eq. 1; the conventions (sign of v, scale of t, shift) are those of
Open-Sora 1.2 and 1.3.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError
from opensora.registry import SCHEDULERS
from opensora.schedulers.guidance import Guidance, TextOrder, predict_copies
from opensora.schedulers.masking import choose_frames, edited_share, mean_over_frames
from opensora.schedulers.timesteps import (
    Denoise,
    Progress,
    Release,
    SampleRng,
    StepNoise,
    TrainingLoss,
    per_sample_noise,
    resolution_ratio,
    sample_t_and_noise,
    shift_timesteps,
)


@SCHEDULERS.register_module(name="rflow")
class RectifiedFlow:
    """Rectified flow as in Open-Sora 1.2 and 1.3.

    num_sampling_steps: Euler steps of `sample`.
    cfg_scale: guidance scale that a sampling run uses when it names none.
    use_discrete_timesteps: whole timesteps only, drawn evenly; sampling rounds its grid.
    sample_method: how training draws t: "uniform", or "logit-normal", which prefers the middle (Esser et al. 2024,
        arXiv:2403.03206, eq. 19: tau = sigmoid(N(loc, scale)); loc > 0 prefers noise). The loss carries no weight.
    use_timestep_transform: shift t towards noise for larger clips (`size` must be given), in training and sampling.
    transform_scale: factor on that shift. It acts in one of the two only: in training with release="1.2", in sampling
        and for videos alone with "1.3".
    release: of Open-Sora, whose shift this is: where transform_scale acts and how latent frames are counted.
    scale_temporal: False = the length of a clip does not shift it.
    image_cfg_scale: scale of the given frames that a sampling run uses when it names none.
    oscillate_text, oscillate_image: on odd steps from step `force_num` on, counted from 0, that scale is 1.
    scale_image_weight: frames farther from the first follow the given frames more (schedulers/guidance.py says how).
    guidance_rescale: 0 to 1, takes back that much of the contrast that guidance adds; Open-Sora 1.3's flaw fix is 0.7.
    """

    text_order: TextOrder = "cond,null"
    image_text_order: TextOrder = "cond,null,null"  # of the tripled batch, when `sample` gets an image_guidance_scale
    masked_sampling = True

    def __init__(
        self,
        num_timesteps: int = 1000,
        num_sampling_steps: int = 30,
        cfg_scale: float = 4.0,
        use_discrete_timesteps: bool = False,
        sample_method: Literal["uniform", "logit-normal"] = "uniform",
        loc: float = 0.0,
        scale: float = 1.0,
        use_timestep_transform: bool = False,
        transform_scale: float = 1.0,
        release: Release = "1.2",
        scale_temporal: bool = True,
        image_cfg_scale: float = 3.0,
        oscillate_text: bool = False,
        oscillate_image: bool = False,
        force_num: int = 10,
        scale_image_weight: bool = False,
        guidance_rescale: float = 0.0,
    ):
        if num_timesteps < 1 or num_sampling_steps < 1:
            raise ConfigError(
                f"scheduler: num_timesteps={num_timesteps}, num_sampling_steps={num_sampling_steps}; both count steps"
                " and are at least 1; correct the config"
            )
        if sample_method not in ("uniform", "logit-normal"):
            raise ConfigError(
                f"scheduler.sample_method: {sample_method!r}; 'uniform' or 'logit-normal' are allowed; choose one"
            )
        if use_discrete_timesteps and sample_method != "uniform":
            raise ConfigError(
                f"scheduler: use_discrete_timesteps with sample_method={sample_method!r}; whole timesteps are drawn"
                " evenly only; remove one of the two"
            )
        if transform_scale <= 0 or scale <= 0:
            raise ConfigError(
                f"scheduler: transform_scale={transform_scale}, scale={scale}; both are above 0; correct the config"
            )
        if release not in ("1.2", "1.3"):
            raise ConfigError(f"scheduler.release: {release!r}; '1.2' or '1.3' are allowed; choose one")
        if not 0 <= guidance_rescale <= 1 or force_num < 0:
            raise ConfigError(
                f"scheduler: guidance_rescale={guidance_rescale}, force_num={force_num}; the first lies between 0 and 1,"
                " the second counts steps; correct the config"
            )
        self.num_timesteps = num_timesteps
        self.num_sampling_steps = num_sampling_steps
        self.cfg_scale = cfg_scale
        self.use_discrete_timesteps = use_discrete_timesteps
        self.sample_method = sample_method
        self.loc = loc
        self.scale = scale
        self.use_timestep_transform = use_timestep_transform
        self.transform_scale = transform_scale
        self.release = release
        self.scale_temporal = scale_temporal
        self.image_cfg_scale = image_cfg_scale
        self.oscillate_text = oscillate_text
        self.oscillate_image = oscillate_image
        self.force_num = force_num
        self.scale_image_weight = scale_image_weight
        self.guidance_rescale = guidance_rescale

    def draw_timesteps(self, count: int, rng: Generator, size: tuple[int, int, int] | None = None) -> Tensor:
        """Training timesteps [count], float32, shifted for `size` (frames, pixels high, pixels wide)."""
        if self.use_discrete_timesteps:
            t = torch.randint(0, self.num_timesteps, (count,), generator=rng).float()
        elif self.sample_method == "uniform":
            t = torch.rand(count, generator=rng) * self.num_timesteps
        else:
            t = torch.sigmoid(self.loc + self.scale * torch.randn(count, generator=rng)) * self.num_timesteps
        return self._shift(t, size, self.transform_scale if self.release == "1.2" else 1.0)

    def add_noise(self, x0_BCTHW: Tensor, noise_BCTHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t; t = 0 returns x_0 itself."""
        tau = (t_B / self.num_timesteps).view(-1, 1, 1, 1, 1)
        return (1 - tau) * x0_BCTHW + tau * noise_BCTHW

    def target(self, x0_BCTHW: Tensor, noise_BCTHW: Tensor) -> Tensor:
        """The training target: the velocity."""
        return x0_BCTHW - noise_BCTHW

    def training_loss(
        self,
        denoise: Denoise,
        x0_BCTHW: Tensor,
        draws: Sequence[SampleRng] | None = None,
        *,
        t_B: Tensor | None = None,
        noise: Tensor | None = None,
        x_mask_BT: Tensor | None = None,
        size: tuple[int, int, int] | None = None,
    ) -> TrainingLoss:
        """Squared error of the velocity per sample; frames where the mask is False stay clean and do not count.

        draws: one per sample, for what `t_B` (taken as it is, without shift) and `noise` leave open.
        size: (frames, pixels high, pixels wide) of the clips, for the shift.
        """
        sampled = sample_t_and_noise(x0_BCTHW, draws, lambda rng: self.draw_timesteps(1, rng, size), t_B, noise)
        t_B, noise = sampled.t_B.to(x0_BCTHW.device, torch.float32), sampled.noise_BCTHW
        x0_BCTHW = x0_BCTHW.float()
        x_t = choose_frames(x_mask_BT, self.add_noise(x0_BCTHW, noise, t_B), x0_BCTHW)
        velocity = denoise(x_t, t_B, x_mask=x_mask_BT).float()[:, : x0_BCTHW.shape[1]]
        loss_B = mean_over_frames((velocity - self.target(x0_BCTHW, noise)).square(), x_mask_BT)
        return TrainingLoss(loss_B, t_B, {})

    def sampling_timesteps(self, size: tuple[int, int, int] | None = None) -> Tensor:
        """The t of every Euler step, falling from num_timesteps, float32 [num_sampling_steps]."""
        grid = [(1 - step / self.num_sampling_steps) * self.num_timesteps for step in range(self.num_sampling_steps)]
        if self.use_discrete_timesteps:
            grid = [float(round(t)) for t in grid]
        return self._shift(torch.tensor(grid), size, self.transform_scale if self.release == "1.3" else 1.0)

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        noise_BCTHW: Tensor,
        rngs: Sequence[Generator],
        *,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        mask_BT: Tensor | None = None,
        size: tuple[int, int, int] | None = None,
        progress: Progress | None = None,
        step_noise: StepNoise | None = None,
    ) -> Tensor:
        """Latents [B, C, T, H, W] from noise, by Euler steps.

        guidance_scale: None or 1 = the model's own prediction; otherwise `denoise` gets the doubled batch, text stacked as
            `text_order` says.
        image_guidance_scale: not None = `denoise` gets the tripled batch, with the text, the given frames and their
            mask stacked as `image_text_order` says, also where guidance_scale is None or 1.
        mask_BT: 0 = `noise_BCTHW` holds the wanted frame, 1 = generate, between = noise the given frame that far first.
        rngs: one per sample, for the noise a mask needs; `step_noise` takes their place.
        """
        step_noise = step_noise or per_sample_noise(rngs)
        latents_BCTHW = noise_BCTHW
        guidance = Guidance(
            guidance_scale,
            image_guidance_scale,
            oscillate_text=self.oscillate_text,
            oscillate_image=self.oscillate_image,
            force_num=self.force_num,
            scale_image_weight=self.scale_image_weight,
            rescale=self.guidance_rescale,
        )
        steps = self.iter_latents(denoise, noise_BCTHW, step_noise, guidance, mask_BT, size)
        for done, latents_BCTHW in enumerate(steps, start=1):  # noqa: B007 - the last one is the result
            if progress is not None:
                progress(done, self.num_sampling_steps)
        return latents_BCTHW

    def iter_latents(
        self,
        denoise: Denoise,
        noise_BCTHW: Tensor,
        step_noise: StepNoise,
        guidance: Guidance,
        mask_BT: Tensor | None,
        size: tuple[int, int, int] | None,
    ) -> Iterator[Tensor]:
        """The latents after every Euler step."""
        x = noise_BCTHW.float()
        times = torch.cat([self.sampling_timesteps(size), torch.zeros(1)])
        # A frame whose start lies below the current t waits; it is noised once, at the step that reaches it.
        start_BT = None if mask_BT is None else mask_BT.to(x.device) * self.num_timesteps
        noised_BT = None if mask_BT is None else mask_BT.to(x.device) == 1
        edited = edited_share(mask_BT) is not None
        if edited and start_BT is not None:
            start_BT = start_BT.clamp(min=times[-2].item())  # one step at the least
        for step, (now, then) in enumerate(zip(times[:-1].tolist(), times[1:].tolist())):
            t_B = x.new_full((len(x),), now)
            active_BT, waiting = None, x
            if start_BT is not None and noised_BT is not None:
                active_BT = start_BT >= now
                fresh = self.add_noise(x, step_noise(x), t_B)
                x = choose_frames(active_BT & ~noised_BT, fresh, x)
                noised_BT = active_BT
                if edited and not bool(active_BT.any()):
                    yield x
                    continue
                active_BT = None if edited else active_BT  # all frames of an edited clip are noised alike
            predictions = predict_copies(denoise, guidance.copies, x, t_B, active_BT)
            velocities = tuple(prediction[:, : x.shape[1]] for prediction in predictions)
            velocity = guidance.combine(velocities, step, self.num_sampling_steps)
            x = choose_frames(active_BT, x + velocity * ((now - then) / self.num_timesteps), waiting)
            yield x

    def _shift(self, t: Tensor, size: tuple[int, int, int] | None, scale: float) -> Tensor:
        if not self.use_timestep_transform:
            return t
        if size is None:
            raise ValueError(
                "rflow: use_timestep_transform without a clip size; it is needed for the shift; pass size=(num_frames,"
                " height, width) in frames and pixels"
            )
        ratio = resolution_ratio(*size, scale=scale, release=self.release, scale_temporal=self.scale_temporal)
        return shift_timesteps(t, ratio, self.num_timesteps)
