"""Clean latents from noisy ones and a model's answer, for every process and parametrization; previews of `generate`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.registry import SCHEDULERS, build
from opensora.rng import generator
from opensora.sampling.clean_estimate import Preview, clean_estimate
from opensora.sampling.generate import generate
from tests.support.fake_sampler import fake_sampler, request


@pytest.mark.parametrize(
    "config",
    [
        {"type": "iddpm"},
        {"type": "iddpm", "predict_xstart": True, "learn_sigma": False},
        {"type": "rflow"},
        {"type": "dpm-solver"},
        {"type": "EulerDiscrete"},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_the_answer_of_a_model_that_knows_it_gives_the_clean_latents(config: dict[str, Any]) -> None:
    scheduler = build(SCHEDULERS, config, num_sampling_steps=4)
    x0, noise = (torch.randn((3, 4, 2, 3, 5), generator=generator(0, name)) for name in ("clean", "noise"))
    t_B = torch.tensor([3.0, 400.0, 900.0])
    x_t = scheduler.add_noise(x0, noise, t_B)
    answer = scheduler.target(x0, noise)
    both_halves = torch.cat([answer, torch.full_like(answer, 9.0)], dim=1)  # the second: of a learned variance
    for channels in (answer, both_halves):
        torch.testing.assert_close(clean_estimate(scheduler, x_t, channels, t_B), x0, rtol=1e-3, atol=2e-3)


def test_previews_come_in_time_and_change_nothing() -> None:
    """Of six steps every second one is shown; the fake model's answer is the same at each, so the last look is the end."""
    shown: list[Tensor] = []
    requests = [request("a cat"), request("a dog", index=1)]
    plain = generate(requests, fake_sampler(steps=6), 3.0)
    watched = generate(requests, fake_sampler(steps=6), 3.0, preview=Preview(2, shown.append))
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    assert [video.shape for video in shown] == [(2, 3, 4, 16, 16)] * 3
    alone: list[Tensor] = []
    unguided = generate(requests, fake_sampler(steps=6), 1.0, preview=Preview(6, alone.append))
    torch.testing.assert_close(alone[0], torch.stack(unguided), rtol=1e-4, atol=1e-4)
