"""Every scheduler in SCHEDULERS passes these tests, with a denoiser that knows the clean clip."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.registry import SCHEDULERS, build, names
from opensora.rng import Draw, generator

SHAPE = (3, 4, 2, 4, 4)
SIZE = (17, 64, 64)  # frames, pixels
# Arguments of schedulers that do not reach the data with their defaults (opensora/schedulers/diffusers_samplers.py
# explains these defaults).
SOUND: dict[str, dict[str, Any]] = {
    "DDIM": dict(config=dict(clip_sample=False)),
    "DDPM": dict(config=dict(clip_sample=False)),
    "PNDM": dict(config=dict(set_alpha_to_one=True)),
    "HeunDiscrete": dict(config=dict(beta_start=1e-4, beta_end=0.02)),
    "KDPM2AncestralDiscrete": dict(config=dict(beta_start=1e-4, beta_end=0.02)),
}
# Further arguments with which a registered scheduler is tested.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "rflow": [
        dict(use_discrete_timesteps=True),
        dict(sample_method="logit-normal", use_timestep_transform=True, transform_scale=2.0),
        dict(release="1.3", use_timestep_transform=True, transform_scale=2.0, oscillate_text=True),
    ],
    "iddpm": [
        dict(learn_sigma=False),
        dict(learn_sigma=False, sigma_small=True, predict_xstart=True),
        dict(sampler="ddim", eta=0.5, table_dtype="float32"),
        dict(noise_schedule="squaredcos_cap_v2", cfg_channel=None),
    ],
    "dpm-solver": [dict(order=1), dict(order=3, learn_sigma=False), dict(noise_schedule="squaredcos_cap_v2")],
    "DDIM": [dict(eta=0.5, config=dict(clip_sample=False, timestep_spacing="trailing"))],
    "DPMSolverMultistep": [dict(config=dict(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True))],
    "UniPCMultistep": [dict(learn_sigma=False, noise_schedule="squaredcos_cap_v2")],
}
STEPS = 12
# Calls of the model in STEPS steps, if there are not STEPS of them.
CALLS = {"PNDM": STEPS + 9, "HeunDiscrete": 2 * STEPS - 1, "KDPM2AncestralDiscrete": 2 * STEPS - 1}
# Tolerance if sampling ends at the first timestep: its noise has a deviation of 0.01, or a little more with cosine.
LEFT_OVER = {"dpm-solver": 0.03, "DEISMultistep": 0.03}


@dataclass
class Case:
    """A scheduler and its registered name."""

    scheduler: Any
    name: str


CONFIGS = [
    dict(type=name, **variant)
    for name in names(SCHEDULERS)
    for variant in [SOUND.get(name, {}), *VARIANTS.get(name, [])]
]


def config_id(config: dict[str, Any]) -> str:
    return "-".join(str(value) for value in config.values())


@pytest.fixture(scope="module", params=CONFIGS, ids=config_id)  # a scheduler remembers nothing between two calls
def case(request: pytest.FixtureRequest) -> Case:
    return Case(build(SCHEDULERS, request.param, num_sampling_steps=STEPS), request.param["type"])


@pytest.fixture(scope="module")
def scheduler(case: Case) -> Any:
    return case.scheduler


def clip(name: str = "clip") -> Tensor:
    return torch.randn(SHAPE, generator=generator(0, name)).clamp(-3, 3)


def draws(sample_ids: range = range(3)) -> list[Draw]:
    return [Draw(seed=1, step=2, sample_id=sample_id) for sample_id in sample_ids]


def trainings() -> list[dict[str, Any]]:
    """One of CONFIGS for each training process: samplers of one process give the same times and losses."""
    by_process = {}
    for config in CONFIGS:
        scheduler = build(SCHEDULERS, config, num_sampling_steps=STEPS)
        loss = scheduler.training_loss(tanh_denoiser, clip(), draws(), size=SIZE)
        by_process.setdefault((*loss.t_B.tolist(), *loss.loss_B.tolist()), config)
    return list(by_process.values())


class Oracle:
    """A denoiser that knows x_0: it computes the noise from x_t and returns the scheduler's training target."""

    def __init__(self, scheduler: Any, x0: Tensor):
        self.scheduler, self.x0 = scheduler, x0
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        assert t_B.dtype == torch.float32
        assert t_B.shape == (len(x),)
        x0 = self.x0.repeat(len(x) // len(self.x0), 1, 1, 1, 1)
        signal = self.scheduler.add_noise(x0, torch.zeros_like(x), t_B)
        noise = (x - signal) / self.scheduler.add_noise(torch.zeros_like(x), torch.ones_like(x), t_B)
        answer = self.scheduler.target(x0, noise)
        return torch.cat([answer, torch.zeros_like(answer)], dim=1) if self.two_halves else answer

    @property
    def two_halves(self) -> bool:
        return getattr(self.scheduler, "learn_sigma", False)


def tanh_denoiser(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
    """Output that depends on each sample's latents and timestep."""
    a = torch.tanh(x) + 0.1 * torch.cos(t_B / 100).view(-1, 1, 1, 1, 1)
    return torch.cat([a, 0.5 * a], dim=1)


@pytest.fixture(scope="module", params=trainings(), ids=config_id)
def process(request: pytest.FixtureRequest) -> Any:
    """A scheduler for each training process."""
    return build(SCHEDULERS, request.param, num_sampling_steps=STEPS)


def test_oracle_samples_the_data(case: Case) -> None:
    x0, scheduler = clip(), case.scheduler
    for guidance_scale, batch in ((None, 3), (1.0, 3), (4.0, 6)):
        oracle = Oracle(scheduler, x0)
        rngs = [generator(0, "sample", i) for i in range(3)]
        sampled = scheduler.sample(oracle, clip("noise"), rngs, guidance_scale=guidance_scale, size=SIZE)
        torch.testing.assert_close(sampled, x0, rtol=1e-3, atol=LEFT_OVER.get(case.name, 1e-3))
        assert oracle.batches == [batch] * CALLS.get(case.name, STEPS), guidance_scale


def test_a_clip_is_edited_as_a_whole(case: Case) -> None:
    """Denoising starts from the noised clip, and the model sees no mask: it may be trained without any."""
    x0, scheduler = clip(), case.scheduler
    noise_levels: list[float] = []

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        assert x_mask is None
        noise_levels.append(float(t_B[0]))
        return Oracle(scheduler, x0)(x, t_B)

    def edit(start: Tensor, share: float, model: Any) -> Tensor:
        noise_levels.clear()
        rngs = [generator(0, "sample", i) for i in range(3)]
        return scheduler.sample(model, start, rngs, mask_BT=torch.full((3, 2), share), size=SIZE)

    left_over = 1.5 * LEFT_OVER.get(case.name, 1e-3)  # the noise that stays is another draw
    torch.testing.assert_close(edit(clip("other"), 0.5, denoise), x0, rtol=1e-3, atol=left_over)
    assert len(noise_levels) <= 0.75 * CALLS.get(case.name, STEPS)
    assert max(noise_levels) <= 500 + scheduler.num_timesteps / STEPS
    if not getattr(scheduler, "predict_xstart", False):  # a model of noise or velocity that sees none changes little
        edited = edit(x0, 0.02, lambda x, t_B, x_mask=None: torch.zeros_like(torch.cat([x, x], 1)))
        assert 0 < (edited - x0).abs().mean() < 0.4


def test_oracle_has_the_least_loss(process: Any) -> None:
    x0 = clip()
    knowing = process.training_loss(Oracle(process, x0), x0, draws(), size=SIZE)
    guessing = process.training_loss(tanh_denoiser, x0, draws(), size=SIZE)
    error = knowing.terms.get("mse", knowing.loss_B)
    torch.testing.assert_close(error, torch.zeros(3), rtol=0, atol=1e-4)
    assert (knowing.loss_B < guessing.loss_B).all()


def test_loss_has_one_finite_number_per_sample_and_a_gradient(process: Any) -> None:
    x0, gain = clip(), torch.ones((), requires_grad=True)
    loss = process.training_loss(lambda x, t_B, x_mask=None: gain * tanh_denoiser(x, t_B), x0, draws(), size=SIZE)
    assert loss.loss_B.shape == loss.t_B.shape == (3,)
    assert loss.loss_B.dtype == loss.t_B.dtype == torch.float32
    assert loss.loss_B.isfinite().all()
    assert ((loss.t_B >= 0) & (loss.t_B <= process.num_timesteps)).all()
    assert all(term.shape == (3,) and not term.requires_grad for term in loss.terms.values())
    loss.loss_B.mean().backward()
    assert gain.grad is not None
    assert gain.grad.abs() > 0


def test_samples_have_independent_noise_and_times(process: Any) -> None:
    same = clip()[:1].expand(SHAPE)  # three times the same clip
    noisy_inputs = []

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        noisy_inputs.append(x)
        return tanh_denoiser(x, t_B)

    loss = process.training_loss(denoise, same, draws(), size=SIZE)
    assert len(set(loss.t_B.tolist())) == 3
    assert len({sample.sum().item() for sample in noisy_inputs[0]}) == 3
    noisy_inputs.clear()
    fixed = loss.t_B[:1].expand(3)
    process.training_loss(denoise, same, draws(), t_B=fixed, size=SIZE)
    assert not torch.isclose(noisy_inputs[0][0], noisy_inputs[0][1]).all(), "same time, and still different noise"


def test_grouping_changes_no_loss(process: Any) -> None:
    x0 = clip()
    together = process.training_loss(tanh_denoiser, x0, draws(), size=SIZE)
    for i in range(3):
        alone = process.training_loss(tanh_denoiser, x0[i : i + 1], draws(range(i, i + 1)), size=SIZE)
        assert torch.equal(alone.t_B[0], together.t_B[i])
        torch.testing.assert_close(alone.loss_B[0], together.loss_B[i], rtol=1e-6, atol=1e-6)
    again = process.training_loss(tanh_denoiser, x0, draws(), size=SIZE)
    assert torch.equal(again.loss_B, together.loss_B)


def test_grouping_changes_no_sample_and_progress_counts_steps(scheduler: Any) -> None:
    noise, progress = clip("noise"), []

    def sample(rows: slice) -> Tensor:
        rngs = [generator(0, "sample", i) for i in range(3)][rows]
        progress.clear()
        return scheduler.sample(
            tanh_denoiser, noise[rows], rngs, size=SIZE, progress=lambda *step: progress.append(step)
        )

    together = sample(slice(0, 3))
    assert progress == [(step, STEPS) for step in range(1, STEPS + 1)]
    for row in range(3):
        torch.testing.assert_close(sample(slice(row, row + 1))[0], together[row], rtol=1e-5, atol=1e-5)


def test_texts_have_an_order_and_a_scale() -> None:
    for config in CONFIGS:
        scheduler = build(SCHEDULERS, config, num_sampling_steps=STEPS)
        assert sorted(scheduler.text_order.split(",")) == ["cond", "null"], config
        assert scheduler.cfg_scale > 1, config


def test_masked_frames_keep_their_values(scheduler: Any) -> None:
    mask = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]])
    if not scheduler.masked_sampling:
        with pytest.raises(ConfigError, match="frame mask"):
            scheduler.sample(tanh_denoiser, clip("noise"), [], mask_BT=mask, size=SIZE)
        return
    kept, noise, rngs = mask == 0, clip("noise"), [generator(0, "sample", i) for i in range(3)]
    expected = torch.where(kept[:, None, :, None, None], noise, clip("data"))
    oracle, masks = Oracle(scheduler, expected), []

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        masks.append(x_mask)
        return oracle(x, t_B)

    sampled = scheduler.sample(denoise, noise, rngs, mask_BT=mask, size=SIZE)
    torch.testing.assert_close(sampled, expected, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(x_mask, x_mask.bool()) and not x_mask[kept].any() for x_mask in masks)
    assert all(x_mask[mask == 1].all() for x_mask in masks)
    joined = [bool(x_mask[2, 0]) for x_mask in masks]
    assert joined == sorted(joined), "a frame that has joined stays"
    assert not joined[0]
    assert joined[-1]


def test_training_mask_limits_loss_and_noise(process: Any) -> None:
    x0, mask = clip(), torch.tensor([[True, False], [True, True], [False, True]])
    calls = []

    def denoise(x: Tensor, t_B: Tensor, x_mask: Tensor | None = None) -> Tensor:
        calls.append((x, x_mask))
        wrong = torch.where(mask, 0.0, 100.0)[:, None, :, None, None]  # only at frames that must not count
        return tanh_denoiser(x, t_B) + wrong

    masked = process.training_loss(denoise, x0, draws(), x_mask_BT=mask, size=SIZE)
    free = process.training_loss(tanh_denoiser, x0, draws(), x_mask_BT=mask, size=SIZE)
    torch.testing.assert_close(masked.loss_B, free.loss_B)
    x_t, x_mask = calls[0]
    assert x_mask is mask
    nearly_clean = (x_t - x0).abs().amax(dim=(1, 3, 4)) < 0.1
    assert torch.equal(nearly_clean, ~mask)
