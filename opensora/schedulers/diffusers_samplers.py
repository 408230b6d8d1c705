"""The samplers that Open-Sora-Plan offers, each a scheduler class of diffusers behind its own name.

They sample models trained with `iddpm`. Guidance acts on all channels the model gives, and the text of the doubled
batch is stacked "null,cond". diffusers is imported when a sampler is built.
"""

import copy
import difflib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from opensora.errors import ConfigError
from opensora.registry import SCHEDULERS, register_preset
from opensora.schedulers.epsilon_sampler import EpsilonSampler, first_step
from opensora.schedulers.guidance import Predict
from opensora.schedulers.tables import NoiseSchedule
from opensora.schedulers.timesteps import TrainingLoss, draw_noise

NAMES = (
    "DDIM",  # one model call per step, unless a comment gives another number
    "DDPM",
    "PNDM",  # steps + 9
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",  # 2 steps - 1
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DEISMultistep",
    "KDPM2AncestralDiscrete",  # 2 steps - 1
    "UniPCMultistep",
)
# diffusers would set these values itself, with a warning.
DEFAULTS: dict[str, dict[str, Any]] = {"DPMSolverSinglestep": {"lower_order_final": True}}


class DiffusersSampler(EpsilonSampler):
    """One of NAMES, which are diffusers' class names without "Scheduler".

    sampler: its name; a config sets it by `type`.
    config: arguments of diffusers' class, for example dict(timestep_spacing="trailing", use_karras_sigmas=True). What is
        left out has diffusers' own default, with which released weights were sampled. Three defaults are worth knowing:
        DDIM and DDPM clamp the clean latents to [-1, 1] at every step, though latents reach further; clip_sample=False
            switches it off.
        HeunDiscrete and KDPM2AncestralDiscrete take another process than models are trained on;
            dict(beta_start=1e-4, beta_end=0.02) is the trained one.
        PNDM stops at the first timestep of the process, not at clean latents; set_alpha_to_one=True goes on.
    eta: DDIM only, share of DDPM's noise. The other arguments are those of EpsilonSampler.
    Training refuses a config whose process is not the trained one. LMS is not offered, for it needs scipy.
    """

    def __init__(
        self,
        sampler: str,
        num_sampling_steps: int = 50,
        cfg_scale: float = 7.5,
        config: dict[str, Any] | None = None,
        eta: float = 0.0,
        noise_schedule: NoiseSchedule = "linear",
        learn_sigma: bool = True,
    ):
        if sampler not in NAMES:
            raise ConfigError(f"scheduler.sampler: {sampler!r}; {', '.join(NAMES)} are allowed; choose one")
        if not 0 <= eta <= 1 or (eta and sampler != "DDIM"):
            raise ConfigError(f"scheduler.eta: {eta} with {sampler}; 0 to 1, and only with DDIM; change it")
        super().__init__(num_sampling_steps, cfg_scale, noise_schedule, 1000, learn_sigma)
        self.name = sampler
        self.config = {"beta_schedule": noise_schedule, **DEFAULTS.get(sampler, {}), **(config or {})}
        self.eta = eta
        self.template = self._build()
        self.num_model_calls = len(self.template.timesteps)

    def training_loss(self, *args: Any, **kwargs: Any) -> TrainingLoss:
        """See `IDDPM.training_loss`; ConfigError when the sampler's process is another than the trained one."""
        ours, trained = self.template.betas.float(), self.process.training_tables.betas.float()
        kind = self.template.config.prediction_type
        same = ours.shape == trained.shape and torch.allclose(ours, trained, rtol=1e-3, atol=0)
        if not same or kind != "epsilon":
            raise ConfigError(
                f"scheduler: {self.name} samples another process (betas {ours[0]:.3g} to {ours[-1]:.3g},"
                f" prediction_type {kind!r}) than the one trained on ({trained[0]:.3g} to"
                f" {trained[-1]:.3g}, 'epsilon'); train with type='iddpm', or set scheduler.config to that process"
            )
        return super().training_loss(*args, **kwargs)

    def iter_latents(
        self, predict: Predict, noise_BCTHW: Tensor, rngs: Sequence[Generator], start: float = 1.0
    ) -> Iterator[Tensor]:
        """The latents after every call of the model, at the scale of diffusers' class."""
        solver = copy.deepcopy(self.template)  # they remember their last sample
        options: dict[str, Any] = {}
        accepted = inspect.signature(solver.step).parameters
        if "generator" in accepted:  # one per sample; diffusers draws on their device, the CPU, and moves the noise
            options["generator"] = list(rngs)
        if "eta" in accepted:
            options["eta"] = self.eta
        if start < 1:
            solver, timesteps = self._started(solver, start)
            x = solver.add_noise(noise_BCTHW, draw_noise(noise_BCTHW, rngs), timesteps[:1].expand(len(noise_BCTHW)))
            for _ in range(self.num_model_calls - len(timesteps)):
                yield x
        else:
            x, timesteps = noise_BCTHW * float(solver.init_noise_sigma), solver.timesteps
        for t in timesteps:
            t_B = x.new_full((len(x),), float(t))
            prediction = predict(solver.scale_model_input(x, t), t_B, None)
            states = [rng.get_state() for rng in rngs] if self.name == "KDPM2AncestralDiscrete" else []
            x = solver.step(prediction, t, x, return_dict=False, **options)[0]
            # Releases were sampled with a diffusers that drew noise at every call, also where it was not used.
            for rng, before, sample in zip(rngs, states, x):
                if torch.equal(rng.get_state(), before):
                    torch.randn(sample.shape, generator=rng)
            yield x

    def _started(self, solver: Any, start: float) -> tuple[Any, Tensor]:
        """diffusers' scheduler, ready for the step at which a clip noised to `start` joins, and the timesteps from there."""
        if (
            self.name == "PNDM"
        ):  # its Runge-Kutta warm-up belongs to pure noise; the steps that follow repeat their second
            solver = self._build(skip_prk_steps=True)
            distinct = torch.unique(solver.timesteps).flip(0)
            kept = distinct[first_step(distinct.tolist(), start * self.num_timesteps) :]
            return solver, torch.cat([kept[:2], kept[1:]])
        order = getattr(solver, "order", 1)  # model calls per step: the first step has one, the others `order`
        first = order * first_step(solver.timesteps[::order].tolist(), start * self.num_timesteps)
        if hasattr(solver, "set_begin_index"):
            solver.set_begin_index(first)
        return solver, solver.timesteps[first:]

    def _build(self, **changes: Any) -> Any:
        """diffusers' scheduler, ready for the first step; ConfigError for a config it does not take."""
        import diffusers

        cls = getattr(diffusers, f"{self.name}Scheduler")
        allowed = list(inspect.signature(cls.__init__).parameters)[1:]
        for key in self.config:
            if key not in allowed:
                nearest = difflib.get_close_matches(key, allowed, n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"scheduler.config.{key}: not an argument of diffusers' {cls.__name__}; nearest: {nearest!r};"
                    f" allowed: {', '.join(allowed)}; correct it"
                )
        if str(self.config.get("variance_type", "")).startswith("learned"):
            raise ConfigError(
                f"scheduler.config.variance_type: {self.config['variance_type']!r}; fixed variances only are allowed, for"
                " the model's second half is dropped here; use type='iddpm' to sample with a learned variance"
            )
        try:
            solver = cls(**self.config | changes)
            solver.set_timesteps(self.num_sampling_steps)
        except (ValueError, NotImplementedError, ImportError, TypeError) as error:
            raise ConfigError(
                f"scheduler: diffusers' {cls.__name__} does not work with {self.num_sampling_steps} steps and"
                f" {self.config} ({error}); correct scheduler.config or num_sampling_steps"
            ) from error
        if float(solver.timesteps.max()) == 0:
            raise ConfigError(
                f"scheduler.num_sampling_steps: {self.num_sampling_steps} with diffusers' {cls.__name__} calls the model at"
                " timestep 0 only, where clean latents are expected and not noise; allowed: 2 and more, or a spacing"
                ' that begins in noise; set config=dict(timestep_spacing="trailing") or more steps'
            )
        return solver


for _name in NAMES:
    register_preset(SCHEDULERS, _name, DiffusersSampler, sampler=_name)
