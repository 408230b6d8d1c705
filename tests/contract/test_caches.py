"""Every cache over denoising steps works with every registered denoiser; a new one of either is tested once registered."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.registry import CACHES, build, names
from opensora.sampling.caches.attention_broadcast import attentions
from opensora.sampling.shortcuts import Shortcuts
from tests.support.bound_calls import guided_inputs, run_clip, steps
from tests.support.small_models import architectures, denoiser

# Arguments with which each cache reuses nothing, and those with which it reuses what it can.
NOTHING: dict[str, dict[str, Any]] = {
    "FirstBlockCache": {"threshold": 0.0},
    "TeaCache": {"threshold": 0.0},
    "PyramidAttentionBroadcast": {"spatial": 1, "temporal": 1, "cross": 1},
}
MUCH: dict[str, dict[str, Any]] = {
    "FirstBlockCache": {"threshold": 0.01},
    "TeaCache": {"threshold": 0.01},
    "PyramidAttentionBroadcast": {"spatial": 2, "temporal": 3, "cross": 4},
}
CALLS = 6


def expected_skips(cache: str, model: Any) -> int:
    """Of CALLS equal calls, counted by hand."""
    blocks = len(model.checkpoint_blocks())
    if cache == "FirstBlockCache":  # the first block always runs, all of them in the first call
        return (blocks - 1) * (CALLS - 1)
    if cache == "TeaCache":  # all run in the first call and in the last
        return blocks * (CALLS - 2)
    texts = 2 if model.conditioned else 1  # that frames attend to
    of_kind = {"spatial": 3, "temporal": 4, "cross": 4 * texts}  # run in calls 0, 2, 4 or 0, 3 or 0, 4
    return sum(of_kind[kind] for kind, _ in attentions(model).values())


def assert_near(answers: list[Tensor], exact: list[Tensor]) -> None:
    for step, (answer, wanted) in enumerate(zip(answers, exact, strict=True)):
        torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5, msg=lambda text, n=step: f"call {n}: {text}")


def test_every_cache_has_its_arguments_here() -> None:
    assert names(CACHES) == sorted(NOTHING) == sorted(MUCH)


@pytest.mark.parametrize("name", architectures())
def test_caches_of_a_denoiser(name: str) -> None:
    """Exact where nothing may be reused; equal calls are skipped as counted by hand, with the answers of both copies."""
    model = denoiser(name).eval()
    clip_inputs = guided_inputs(model)
    moving, still = steps(model, 4), steps(model, CALLS, change=0.0)
    moving.insert(2, moving[1])  # a call that is equal to the one before: a threshold of 0 does not skip it either
    exact_moving, exact_still = (run_clip(model, clip_inputs, Shortcuts(), clip)[0] for clip in (moving, still))
    assert not torch.allclose(*exact_still[0].chunk(2)), "the caption does not matter: copies could be confused"
    for cache in names(CACHES):
        nothing = Shortcuts(cache=build(CACHES, {"type": cache, **NOTHING[cache]}))
        answers, denoise = run_clip(model, clip_inputs, nothing, moving)
        assert denoise.state.counts.skipped == 0
        assert all(map(torch.equal, answers, exact_moving)), cache

        much = Shortcuts(cache=build(CACHES, {"type": cache, **MUCH[cache]}))
        answers, denoise = run_clip(model, clip_inputs, much, still)
        assert denoise.state.counts.skipped == expected_skips(cache, model), cache
        assert_near(answers, exact_still)
        # Calls without the other copy: its state must wait for it.
        both = Shortcuts(null_every=3, cache=much.cache)
        answers, denoise = run_clip(model, clip_inputs, both, still)
        assert denoise.copies_seen == 2 * CALLS - 4  # the second copy is left out of calls 1, 2, 4, 5
        assert_near(answers, exact_still)

        again, _ = run_clip(model, clip_inputs, much, moving)  # what a clip before it left behind must not matter
        first, _ = run_clip(denoiser(name).eval(), clip_inputs, much, moving)
        assert all(map(torch.equal, again, first)), cache
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("STDiT-XL/2", {"spatial": 2, "temporal": 2, "cross": 2}),
        ("STDiT2", {"spatial": 2, "temporal": 2, "cross": 2}),
        ("STDiT3", {"spatial": 2, "temporal": 2, "cross": 4}),
        ("STDiT3-XL/2-v1.3", {"spatial": 2, "temporal": 2, "cross": 4}),
        ("DiT", {"spatial": 2}),
        ("Latte", {"spatial": 1, "temporal": 1}),
        ("PixArt", {"spatial": 2, "cross": 2}),
        ("LatteT2V", {"spatial": 2, "temporal": 2, "cross": 2}),
    ],
)
def test_attentions_have_their_kinds(name: str, kinds: dict[str, int]) -> None:
    listed = [kind for kind, _ in attentions(denoiser(name)).values()]
    assert {kind: listed.count(kind) for kind in set(listed)} == kinds
