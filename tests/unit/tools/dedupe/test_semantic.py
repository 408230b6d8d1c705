"""Semantic duplicates by vectors."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tools.dedupe import semantic
from tools.dedupe.groups import Groups
from tools.dedupe.semantic import unite_similar

pytest.importorskip("faiss", reason="faiss is not installed; run pip install -e '.[tools]'")


def united(vectors: NDArray[np.floating], similarity: float = 0.95) -> NDArray[np.int64]:
    groups = Groups(len(vectors))
    unite_similar(vectors, groups, similarity)
    return groups.roots


def vectors_and_copies(count: int, size: int = 64) -> NDArray[np.float32]:
    """Random vectors, and as the second half copies that are a little off and of other lengths."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, size))
    return np.concatenate([vectors, 3 * (vectors + rng.normal(0, 0.15, vectors.shape))]).astype(np.float32)


@pytest.mark.parametrize("count", [3, 1000])
def test_similar_vectors_are_united(count: int) -> None:
    assert united(vectors_and_copies(count)).tolist() == [*range(count)] * 2
    assert united(vectors_and_copies(count), similarity=0.9999).tolist() == [*range(2 * count)]


def test_codes_in_place_of_vectors_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that would not fit into memory holds codes; the vectors decide."""
    monkeypatch.setattr(semantic, "_FLAT_BYTES", 1000)
    assert united(vectors_and_copies(600)).tolist() == [*range(600)] * 2


def test_the_order_of_rows_has_no_influence() -> None:
    vectors = vectors_and_copies(400)
    order = np.random.default_rng(1).permutation(len(vectors))
    roots, shuffled = united(vectors, 0.989), united(vectors[order], 0.989)
    together = roots[:, None] == roots[None]
    assert 800 < together.sum() < 1600  # some pairs, not all
    assert np.array_equal(together[order][:, order], shuffled[:, None] == shuffled[None])


def test_rows_without_a_vector_are_alone_and_equal_ones_together() -> None:
    vectors = np.zeros((6, 8), np.float32)
    vectors[2:5] = 1.0
    assert united(vectors).tolist() == [0, 1, 2, 2, 2, 5]
    assert united(np.zeros((0, 8), np.float32)).tolist() == []
    assert united(vectors.astype(np.float16)).tolist() == [0, 1, 2, 2, 2, 5]
