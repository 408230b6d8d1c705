"""A step that allocates nothing, against hand counts and against the same step on the CPU."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from opensora.models.stdit.stdit3 import STDiT3
from opensora.planning.depth_extrapolation import extrapolate_depth, repeat_blocks
from opensora.planning.meta_profile import LiveBytes, StepProfile, fused_attention, profile_forward, profile_step
from opensora.registry import VAES, build, names
from tests.support.small_models import SMALL_VAES


class Two(nn.Module):
    """Two linear layers of 8 x 8 without bias, and a square between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).square())

    def checkpoint_blocks(self) -> list[nn.Module]:
        return [self.first]


def test_by_hand() -> None:
    """Ten rows of 8 numbers are 320 bytes: first's result and its square wait for the backward, and the loss' input."""
    with torch.device("meta"):
        profile = profile_step(Two(), lambda model: model(torch.empty(10, 8)))
    assert profile.forward_flops == 2 * 2 * 10 * 8 * 8
    assert profile.backward_flops == 3 * 2 * 10 * 8 * 8  # two for second, one for first, whose input needs no gradient
    assert [point.gradients for point in profile.points] == [0, 64, 128]
    waiting = 320 + 3 * 320  # the input, made in the forward, and three results
    assert waiting <= profile.saved <= waiting + 64


def stdit3(depth: int = 3, **changes: Any) -> STDiT3:
    return STDiT3(
        depth=depth,
        input_size=(4, 8, 8),
        hidden_size=48,
        num_heads=2,
        caption_channels=16,
        model_max_length=8,
        **changes,
    )


def call(model: Any) -> Tensor:
    one = torch.ones(2)
    return model(torch.ones(2, 4, 4, 8, 8), one, torch.ones(2, 1, 8, 16), height=one, width=one, fps=one)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_meta_and_cpu_hold_the_same(checkpointed: bool) -> None:
    with torch.device("meta"):
        on_paper = profile_step(stdit3(), call, checkpointed=checkpointed)
    assert profile_step(stdit3(), call, checkpointed=checkpointed).points[1:] == on_paper.points[1:]


def test_recomputation_keeps_little_and_costs_a_forward() -> None:
    with torch.device("meta"):
        plain, again = (profile_step(stdit3(5), call, checkpointed=flag) for flag in (False, True))
    assert again.saved < 0.2 * plain.saved
    assert again.peak < 0.4 * plain.peak
    assert again.forward_flops == plain.forward_flops
    more = again.backward_flops - plain.backward_flops
    assert 0.9 * plain.forward_flops < more <= plain.forward_flops
    assert plain.backward_flops == pytest.approx(2 * plain.forward_flops, rel=0.1)


def test_arithmetic_is_what_torch_counts() -> None:
    model = stdit3(2)
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        call(model)
    q = torch.ones(1, 2, 16, 24)
    with torch.device("meta"):
        attention = profile_forward(lambda: fused_attention(*[torch.empty(1, 2, 16, 24)] * 3))[1]
        ours = profile_forward(lambda: call(stdit3(2)))[1]
    assert attention == 2 * 2 * q.numel() * 16
    # torch's counter passes the CPU's fused attention over: 2 x 2 blocks on 2 x (4 x 16) tokens, with text of 8
    spatial, temporal, text = 2 * 4 * 16 * 16, 2 * 16 * 4 * 4, 2 * 64 * 8
    assert ours - theirs.get_total_flops() == 2 * 4 * 48 * (spatial + temporal + 2 * text)


def test_scores_are_never_kept() -> None:
    """Four times the patches: what waits grows as they do, not as their square."""

    def kept(side: int) -> int:
        with torch.device("meta"):
            one = torch.ones(1)
            model, text = stdit3(2), torch.ones(1, 1, 8, 16)
            x = torch.ones(1, 4, 1, side, side)
            return profile_step(model, lambda m: m(x, one, text, height=one, width=one, fps=one)).saved

    assert kept(128) / kept(64) == pytest.approx(4, rel=0.02)


def test_autoencoders_keep_no_scores_either() -> None:
    """One head of 4096 places: the scores alone would be 64 MiB."""
    with torch.device("meta"):
        q = torch.empty(1, 1, 4096, 8)
        peak, flops = profile_forward(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert peak < 2 * 2**20
    assert flops == 4 * 4096 * 4096 * 8


def test_bf16_under_autocast_keeps_norms_in_float32() -> None:
    """Half of float32 would be 0.5; the norms' inputs and results are wide."""
    with torch.device("meta"):
        wide = profile_step(stdit3(), call).saved
        narrow = profile_step(stdit3().to(torch.bfloat16), call, autocast=True).saved
        mixed = profile_step(stdit3(), call, autocast=True).saved  # float32 weights, cast as they are used
    assert 0.5 < narrow / wide < 0.8
    assert narrow < mixed


@pytest.mark.parametrize("checkpointed", [False, True])
def test_deep_model_by_two_shallow_ones(checkpointed: bool) -> None:
    depth = 6
    depths = []

    def at(depth: int) -> StepProfile:
        depths.append(depth)
        with torch.device("meta"):
            return profile_step(stdit3(depth), call, checkpointed=checkpointed)

    assert extrapolate_depth(at, depth) == at(depth)
    assert depths == [3, 4, depth]


def test_model_without_repeated_blocks_is_profiled_whole() -> None:
    with torch.device("meta"):
        two, other = profile_step(stdit3(2), call), profile_step(stdit3(3, mlp_ratio=2.0), call)
    assert repeat_blocks(two, two, 1) is None
    assert repeat_blocks(two, other, 1) is None
    depths = []

    def at(depth: int) -> StepProfile:
        depths.append(depth)
        with torch.device("meta"):
            return profile_step(stdit3(depth, mlp_ratio=float(depth)), call)

    assert extrapolate_depth(at, 7).points[-1].gradients > 0
    assert depths[-1] == 7


def test_freed_memory_is_not_counted() -> None:
    with torch.device("meta"), LiveBytes() as live:
        first = torch.empty(100)
        del first
        torch.empty(50)
        assert (live.now, live.take_peak()) == (0, 400)


@pytest.fixture
def colossalais_rules() -> Iterator[Any]:
    """The rules for torch's meta device that importing colossalai changes, for the time of a test."""
    profile = importlib.util.find_spec("colossalai")
    assert profile is not None
    assert profile.origin is not None
    path = Path(profile.origin).parent / "_analyzer" / "_subclasses" / "_meta_registration.py"
    spec = importlib.util.spec_from_file_location("rules_of_colossalai", path)
    assert spec is not None
    assert spec.loader is not None
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    yield rules
    rules.meta_lib._destroy()


def test_a_norm_without_weights_is_rehearsed_under_colossalais_rules(colossalais_rules: Any) -> None:
    """Going back they fail on it, and going forward they keep too much; the import puts them in for the whole process."""
    with torch.device("meta"):
        x = torch.empty(4, 8, requires_grad=True)
        with pytest.raises(TypeError, match="empty_like"):
            nn.functional.layer_norm(x, (8,)).sum().backward()
        with LiveBytes() as live:
            nn.functional.layer_norm(x, (8,)).sum().backward()
            assert x.grad is not None
            assert x.grad.shape == (4, 8)
            # the result, which goes, or its gradient; a mean and a deviation for each row; the sum and its gradient
            assert live.take_peak() == 4 * 8 * 4 + 2 * 4 * 4 + 2 * 4


@pytest.mark.parametrize("name", names(VAES))
def test_autoencoders_are_rehearsed_with_and_without_checkpointing(name: str) -> None:
    """Autoencoders call torch's attention in the forward and, under checkpointing, once more in the backward."""
    profiles = []
    for checkpointed in (False, True):
        with torch.device("meta"):
            model = build(VAES, {"type": name, **SMALL_VAES[name]})
            video = torch.empty(1, 3, model.compression[0] + 1, 16, 24)
            profiles.append(
                profile_step(model, lambda model, video=video: model(video, None), checkpointed=checkpointed)
            )
    plain, spared = profiles
    assert spared.saved < plain.saved
    assert spared.forward_flops == plain.forward_flops > 0
    assert spared.backward_flops > plain.backward_flops
