"""Rehearsing a deep model by two shallow ones: its blocks are alike, so what a block adds is seen once and repeated."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from opensora.planning.meta_profile import StepProfile


def extrapolate_depth(rehearse_at: Callable[[int], StepProfile], depth: int) -> StepProfile:
    """The rehearsal at `depth`, of which `rehearse_at` gives that of any other depth.

    Blocks may alternate between two kinds. Where a third block does not add what the second did, as when some have
    other attention, the whole depth is rehearsed.
    """
    for period in (1, 2):
        short_depth = 3 if period == 1 else 4 + depth % 2  # with two blocks, what surrounds them may be the fullest
        if depth <= short_depth + period:
            break
        short, long = rehearse_at(short_depth), rehearse_at(short_depth + period)
        deep = repeated(short, long, (depth - short_depth) // period)
        if deep is not None:
            return deep
    return rehearse_at(depth)


def repeated(short: StepProfile, long: StepProfile, times: int) -> StepProfile | None:
    """`short` with what `long` has more added `times` times; None when it is not a repetition."""
    more = len(long.moments) - len(short.moments)
    if more <= 0:
        return None
    step = partial(
        _one_more,
        kept=long.kept - short.kept,
        elements=long.moments[-1].delivered - short.moments[-1].delivered,
        forward_flops=long.forward_flops - short.forward_flops,
        backward_flops=long.backward_flops - short.backward_flops,
        sent=long.sent - short.sent,
    )
    for place in range(len(short.moments) - more + 1):
        if step(short, above=place + more, below=place) == long:
            deep = short
            for _ in range(times):
                deep = step(deep, above=place + more, below=place)
            return deep
    return None


def _one_more(
    now: StepProfile,
    *,
    above: int,
    below: int,
    kept: int,
    elements: int,
    forward_flops: int,
    backward_flops: int,
    sent: int,
) -> StepProfile:
    """A block more. A backward goes through the last block first: it puts its moments in front, those `above` the others,
    and as long as it lasts what the others keep is there as well."""
    return StepProfile(
        kept=now.kept + kept,
        moments=(
            *(replace(moment, live=moment.live + kept) for moment in now.moments[:above]),
            *(replace(moment, delivered=moment.delivered + elements) for moment in now.moments[below:]),
        ),
        forward_flops=now.forward_flops + forward_flops,
        backward_flops=now.backward_flops + backward_flops,
        sent=now.sent + sent,
    )
