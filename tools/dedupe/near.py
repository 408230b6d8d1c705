"""Near duplicates by perceptual hashes: an index of groups of bits, so that never all pairs are compared.

Multi-index hashing (Norouzi, Punjani & Fleet 2012, arXiv:1307.2982): each frame's 64 bits are three bands, and clips that agree
in all bits of one band of one frame are compared. A copy differs in few bits, so that some of 24 bands agree; of unrelated
clips hardly any do. Within a band rows are sorted, and each is compared with the next few: the time is bounded even where
millions of clips agree in a band.

Shapes: N clips, M different ones, F frames of each, P pairs.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.dedupe.groups import Groups, Rows

Codes = NDArray[np.uint64]  # [N, F]; 0 = the frame shows nothing

_BITS = 64
_BANDS = ((0, 22), (22, 21), (43, 21))  # (first bit, number of bits) in order of frequency
_WINDOW = 64  # rows behind each row in a band that it is compared with
_PAIRS_AT_ONCE = 1 << 20
_UNITED_AT_ONCE = 1 << 22


def unite_near(codes: Codes, groups: Groups, distance: float) -> None:
    """Unite the clips whose hashes differ in at most `distance` of 64 bits, in the mean over their frames."""
    # Clips without a frame that shows something have no duplicates here.
    shows: NDArray[np.bool_] = np.any(codes, axis=1)
    order = np.argsort(mixed(codes), kind="stable")
    order = order[shows[order]]
    if len(order) < 2:
        return
    equal = equal_to_next(codes, order)
    groups.unite(order[:-1][equal], order[1:][equal])
    rows = order[np.concatenate([[True], ~equal])]  # one of each
    different = codes[rows]
    del codes, order, shows, equal  # of ten million clips the hashes are 640 MB
    one, other, waiting = [], [], 0
    for a, b in _candidates(different, rows, groups, distance):
        near = mean_distance(different[a], different[b]) <= distance
        one.append(rows[a[near]])
        other.append(rows[b[near]])
        waiting += len(one[-1])
        if waiting > _UNITED_AT_ONCE:
            groups.unite(np.concatenate(one), np.concatenate(other))
            one, other, waiting = [], [], 0
    if one:
        groups.unite(np.concatenate(one), np.concatenate(other))


def mean_distance(one: Codes, other: Codes) -> NDArray[np.float64]:
    """[P]: bits of 64 that differ between [P, F] and [P, F], in the mean over the frames; infinity for unrelated clips.

    A frame that shows something in one clip and nothing in the other differs in 32 bits, as unrelated ones; frames that show
    nothing in both do not count. At least two frames must show something in both, where there are two; and at most one
    in eight may differ in more than 24 bits, which a cut next to a sample explains.
    """
    bits = np.bitwise_count(one ^ other)
    first, second = one != 0, other != 0
    both, either = first & second, first | second
    bits = np.where(both, bits, np.where(either, _BITS // 2, 0))
    frames = one.shape[1]
    related = both.sum(axis=1) >= min(2, frames)
    related &= (bits > 24).sum(axis=1) <= max(frames // 8, 0)
    return np.where(related, bits.sum(axis=1) / np.maximum(1, either.sum(axis=1)), np.inf)


def mixed(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[N]: a number for each row by its contents, so that the order of rows has no influence."""
    mixed = np.zeros(len(codes), np.uint64)
    for column in codes.T:  # the finalizer of MurmurHash3
        mixed ^= column
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            mixed ^= mixed >> np.uint64(33)
            mixed *= np.uint64(factor)
        mixed ^= mixed >> np.uint64(33)
    return mixed


def equal_to_next(values: NDArray[Any], order: Rows) -> NDArray[np.bool_]:
    """[P - 1]: which rows of [N, ...], taken in this order, equal the one behind them."""
    equal = np.empty(max(0, len(order) - 1), bool)
    for begin in range(0, len(equal), _PAIRS_AT_ONCE):
        some = values[order[begin : begin + _PAIRS_AT_ONCE + 1]]
        equal[begin : begin + _PAIRS_AT_ONCE] = (some[1:] == some[:-1]).all(axis=1)
    return equal


def _candidates(codes: Codes, rows: Rows, groups: Groups, distance: float) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of indices of `codes` [M, F] that agree in a band of a frame, differ little in it, and are not united yet."""
    for frame in codes.T:
        shown = np.flatnonzero(frame)
        for first, count in _BANDS:
            # The band's bits come first, the others behind them: similar frames are near each other in each band.
            turned = np.bitwise_or(frame[shown] << np.uint64(first), frame[shown] >> np.uint64(-first % _BITS))
            order = np.argsort(turned, kind="stable")
            turned, members = turned[order], shown[order]
            band = turned >> np.uint64(_BITS - count)
            for step in range(1, min(_WINDOW + 1, len(members))):
                agree = np.flatnonzero(band[step:] == band[:-step])
                if not len(agree):
                    break
                for begin in range(0, len(agree), _PAIRS_AT_ONCE):
                    at = agree[begin : begin + _PAIRS_AT_ONCE]
                    at = at[np.bitwise_count(turned[at] ^ turned[at + step]) <= distance]
                    one, other = members[at], members[at + step]
                    new = groups.apart(rows[one], rows[other])
                    yield one[new], other[new]
