"""The profile of a deep model from two shallow ones: its blocks are alike, so the cost of one is added repeatedly."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from opensora.planning.meta_profile import StepProfile


def extrapolate_depth(profile_at: Callable[[int], StepProfile], depth: int) -> StepProfile:
    """The profile at `depth`; `profile_at(n)` profiles the model with n blocks.

    Blocks may alternate between two kinds. Where another block does not add what the one before did, for example because
    its attention differs, the whole depth is profiled.
    """
    for period in (1, 2):
        short_depth = 3 if period == 1 else 4 + depth % 2  # with only two blocks the peak may lie outside of them
        if depth <= short_depth + period:
            break
        short, long = profile_at(short_depth), profile_at(short_depth + period)
        deep = repeat_blocks(short, long, (depth - short_depth) // period)
        if deep is not None:
            return deep
    return profile_at(depth)


def repeat_blocks(short: StepProfile, long: StepProfile, times: int) -> StepProfile | None:
    """`short` plus `times` times the difference to `long`; None when `long` is not `short` with a block repeated."""
    extra = len(long.points) - len(short.points)
    if extra <= 0:
        return None
    add = partial(
        _add_block,
        saved=long.saved - short.saved,
        elements=long.points[-1].gradients - short.points[-1].gradients,
        forward_flops=long.forward_flops - short.forward_flops,
        backward_flops=long.backward_flops - short.backward_flops,
        sent=long.sent - short.sent,
    )
    for index in range(len(short.points) - extra + 1):
        if add(short, above=index + extra, below=index) == long:
            deep = short
            for _ in range(times):
                deep = add(deep, above=index + extra, below=index)
            return deep
    return None


def _add_block(
    profile: StepProfile,
    *,
    above: int,
    below: int,
    saved: int,
    elements: int,
    forward_flops: int,
    backward_flops: int,
    sent: int,
) -> StepProfile:
    """Add a block at the end. The backward goes through it first, so its points come first, and during them the saved
    activations of all other blocks are still alive."""
    return StepProfile(
        saved=profile.saved + saved,
        points=(
            *(replace(point, live=point.live + saved) for point in profile.points[:above]),
            *(replace(point, gradients=point.gradients + elements) for point in profile.points[below:]),
        ),
        forward_flops=profile.forward_flops + forward_flops,
        backward_flops=profile.backward_flops + backward_flops,
        sent=profile.sent + sent,
    )
