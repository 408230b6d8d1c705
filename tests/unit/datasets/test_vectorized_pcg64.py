"""The very numbers of numpy's generators."""

import numpy as np
import pytest

from opensora.datasets.vectorized_pcg64 import first_draws

EDGES = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_numbers_are_those_of_numpy(count: int) -> None:
    rng = np.random.default_rng(7)
    seeds = np.concatenate(
        [
            np.array(EDGES, dtype=np.uint64),
            np.arange(1000, dtype=np.uint64),
            rng.integers(0, 2**32, 1000, dtype=np.uint64),
            rng.integers(0, 2**64, 1000, dtype=np.uint64),
        ]
    )
    expected = np.array([np.random.default_rng(int(seed)).random(count) for seed in seeds])
    assert np.array_equal(first_draws(seeds, count), expected)


def test_blocks_are_joined_in_order_and_no_seeds_give_nothing() -> None:
    seeds = np.arange(40_000)
    values = first_draws(seeds)
    picked = [0, 16_383, 16_384, 32_767, 32_768, 39_999]
    assert values[picked, 0].tolist() == [np.random.default_rng(seed).random() for seed in picked]
    assert first_draws(seeds[:0], 2).shape == (0, 2)
