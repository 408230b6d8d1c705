"""Near duplicates by the bits of perceptual hashes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tools.dedupe import near
from tools.dedupe.groups import Groups
from tools.dedupe.near import mean_distance, unite_near

FRAMES = 8


def random_codes(count: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(1, 1 << 64, (count, FRAMES), np.uint64)


def flipped(codes: NDArray[np.uint64], share: float, seed: int = 1) -> NDArray[np.uint64]:
    """Copies in which this share of the bits differs; those of high frequency, the last ones, three times as often."""
    rng = np.random.default_rng(seed)
    chances = share * np.linspace(0.5, 1.5, 64)
    flips = rng.random((*codes.shape, 64)) < chances
    return codes ^ np.packbits(flips, axis=-1).view(">u8")[..., 0].astype(np.uint64)


def united(codes: NDArray[np.uint64], distance: float = 10) -> list[int]:
    groups = Groups(len(codes))
    unite_near(codes, groups, distance)
    return groups.roots.tolist()


def test_copies_are_found_among_others_and_no_more() -> None:
    codes = random_codes(2000)
    copies = np.concatenate([flipped(codes[:500], share, seed) for seed, share in enumerate((0.02, 0.05, 0.1))])
    roots = united(np.concatenate([codes, copies]))
    assert roots[:2000] == list(range(2000))
    assert roots[2000:3000] == [*range(500)] * 2
    assert np.mean(np.array(roots[3000:]) == np.arange(500)) > 0.9  # 6 bits of 64 differ; distances are up to 10


def test_the_index_misses_few_pairs_at_the_limit_and_adds_none() -> None:
    codes = np.concatenate([random_codes(200), flipped(random_codes(200), 0.115)])
    one, other = np.triu_indices(len(codes), 1)
    close = mean_distance(codes[one], codes[other]) <= 8
    expected = Groups(len(codes))
    expected.unite(one[close], other[close])
    assert 100 < close.sum() < 190
    indexed = np.array(united(codes, 8))
    pairs = np.flatnonzero(indexed != np.arange(400))
    assert np.array_equal(indexed[pairs], expected.roots[pairs])
    assert len(pairs) >= 0.9 * close.sum()


def test_the_order_of_rows_has_no_influence() -> None:
    codes = np.concatenate([random_codes(300), flipped(random_codes(300), 0.1), flipped(random_codes(300), 0.14, 2)])
    order = np.random.default_rng(3).permutation(len(codes))
    roots, shuffled = np.array(united(codes)), np.array(united(codes[order]))
    together = roots[:, None] == roots[None]
    assert np.array_equal(together[order][:, order], shuffled[:, None] == shuffled[None])
    assert together.sum() > 2 * len(codes)


def test_equal_clips_are_one_group_however_many() -> None:
    codes = np.concatenate([np.repeat(random_codes(1), 500, axis=0), random_codes(10, seed=5)])
    assert united(codes) == [0] * 500 + list(range(500, 510))


def test_a_crowded_band_is_compared_with_neighbors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million clips with one opening picture would be 10^12 pairs; their other frames differ."""
    compared = []
    real = near.mean_distance

    def counted(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.float64]:
        compared.append(len(one))
        return real(one, other)

    monkeypatch.setattr(near, "mean_distance", counted)
    codes = random_codes(3000)
    codes[:, 0] = codes[0, 0]
    codes[1500:, 1:] = flipped(codes[:1500, 1:], 0.05)
    roots = united(codes)
    assert roots == [*range(1500)] * 2
    assert sum(compared) <= 4 * 64 * len(codes)


def test_frames_that_show_nothing_connect_no_clips() -> None:
    codes = random_codes(50)
    codes[:20] = 0  # black clips
    codes[20:40, 2:] = 0  # fades: two frames show something
    assert united(codes) == list(range(50))
    copies = flipped(codes[20:40], 0.03)
    copies[:, 2:] = 0
    assert united(np.concatenate([codes, copies]))[50:] == list(range(20, 40))


def test_distance_is_the_mean_over_frames_with_one_outlier() -> None:
    one = random_codes(1)
    assert mean_distance(one, one ^ np.uint64(0b111)).tolist() == [3.0]
    other = one.copy()
    other[0, 0] = ~other[0, 0]  # one frame of eight behind a cut
    assert mean_distance(one, other).tolist() == [8.0]
    other[0, 1] = ~other[0, 1]
    assert mean_distance(one, other).tolist() == [np.inf]
    black = one.copy()
    black[0, 1:] = 0
    assert mean_distance(black, black).tolist() == [np.inf]  # of eight frames, one shows something
    assert mean_distance(one[:, :1], one[:, :1]).tolist() == [0.0]  # a picture has but one
