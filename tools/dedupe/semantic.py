"""Semantic duplicates by vectors: an inverted file of faiss, so that each vector is compared with those of a few cells.

Shapes: N rows, M different vectors, D numbers of a vector, K neighbors.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.dedupe.groups import Groups
from tools.dedupe.near import equal_to_next, mixed

Vectors = NDArray[np.floating]  # [N, D]; zeros = the row has none

_NEIGHBORS = 32
_CELLS_VISITED = 16
_FLAT_BYTES = 1 << 30  # of the vectors in an index; of more, it holds one bit for each number, and the vectors decide
_TRAINING_PER_CELL = 64
_ROWS_AT_ONCE = 8192


def unite_similar(vectors: Vectors, groups: Groups, similarity: float) -> None:
    """Unite rows whose vectors have a cosine of at least `similarity`, each with its 32 nearest. Raises nothing."""
    rows = (
        np.concatenate(
            [
                begin + np.flatnonzero(vectors[begin : begin + _ROWS_AT_ONCE].any(axis=1))
                for begin in range(0, len(vectors), _ROWS_AT_ONCE)
            ]
        )
        if len(vectors)
        else np.zeros(0, np.int64)
    )
    if len(rows) < 2:
        return
    # In an order by contents the cells, and so the result, do not depend on the order of rows.
    words = np.ascontiguousarray(vectors[:, :16], np.float32)
    codes: Any = np.pad(words, ((0, 0), (0, words.shape[1] % 2))).view(np.uint64)
    rows = rows[np.argsort(mixed(codes)[rows], kind="stable")]
    equal = equal_to_next(vectors, rows)
    groups.unite(rows[:-1][equal], rows[1:][equal])
    rows = rows[np.concatenate([[True], ~equal])]
    if len(rows) < 2:
        return
    index = _index(vectors, rows)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[begin : begin + _ROWS_AT_ONCE]
        queries = unit(vectors[some])
        _, neighbors = index.search(queries, min(_NEIGHBORS, len(rows)))
        one, other = np.repeat(np.arange(len(some)), neighbors.shape[1]), neighbors.ravel()
        # Each pair once; -1 stands for fewer neighbors.
        one, other = one[other > begin + one], other[other > begin + one]
        new = groups.apart(some[one], rows[other])
        one, other = one[new], other[new]
        for start in range(0, len(one), _ROWS_AT_ONCE):
            a, b = one[start : start + _ROWS_AT_ONCE], rows[other[start : start + _ROWS_AT_ONCE]]
            near = np.einsum("pd,pd->p", queries[a], unit(vectors[b])) >= similarity
            groups.unite(some[a[near]], b[near])


def unit(vectors: Vectors) -> NDArray[np.float32]:
    """[N, D] at length 1, in float32."""
    wide = np.asarray(vectors, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def _index(vectors: Vectors, rows: NDArray[np.int64]) -> Any:
    """An inverted file of the rows' vectors by cosine; entry m is row `rows[m]`."""
    import faiss

    size = vectors.shape[1]
    cells = max(1, min(round(4 * math.sqrt(len(rows))), len(rows) // 40))
    flat = len(rows) * size * 4 <= _FLAT_BYTES
    kind = "Flat" if flat else "RaBitQ"
    index: Any = faiss.index_factory(size, f"IVF{cells},{kind}", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1  # it would warn of few rows
    index.nprobe = min(cells, _CELLS_VISITED)
    step = max(1, len(rows) // max(cells * _TRAINING_PER_CELL, 1))
    index.train(unit(vectors[rows[::step]]))
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        index.add(unit(vectors[rows[begin : begin + _ROWS_AT_ONCE]]))
    return index
