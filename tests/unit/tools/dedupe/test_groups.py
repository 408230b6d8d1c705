"""Rows are united pair by pair."""

import numpy as np

from tools.dedupe.groups import Groups


def test_connected_rows_are_one_group_whatever_the_order_of_pairs() -> None:
    rng = np.random.default_rng(0)
    pairs = np.array(
        [(number, number + 10) for number in range(90) if number % 10 != 3]
    )  # ten chains of ten rows, one cut
    expected = [row % 10 if row % 10 != 3 else row for row in range(100)]
    for _ in range(5):
        groups = Groups(100)
        shuffled = rng.permutation(pairs)
        for part in np.array_split(shuffled, 4):
            groups.unite(part[:, 0], part[:, 1])
        assert groups.roots.tolist() == expected


def test_pairs_within_one_group_are_not_apart() -> None:
    groups = Groups(4)
    groups.unite(np.array([0, 1]), np.array([1, 2]))
    assert groups.apart(np.array([0, 0]), np.array([2, 3])).tolist() == [False, True]


def test_a_copy_is_united_alone() -> None:
    groups = Groups(2)
    other = groups.copy()
    other.unite(np.array([0]), np.array([1]))
    assert (groups.roots.tolist(), other.roots.tolist()) == ([0, 1], [0, 0])
