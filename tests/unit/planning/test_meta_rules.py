"""The rules give what torch's own rules give."""

from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.planning.meta_rules import RULES

aten = torch.ops.aten


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


half, square = empty(2, 3, 4, dtype=torch.bfloat16), empty(4, 4)
norm_of_groups = (empty(8), empty(8), 2, 8, 12, 4, 1e-5)
PAIRS = {
    "equal shapes": (empty(2, 3, 4), empty(2, 3, 4)),
    "smaller second": (empty(2, 3, 4), empty(3, 1)),
    "smaller first": (empty(1, 4), empty(2, 3, 4)),
    "both smaller than the result": (empty(2, 1, 4), empty(3, 1)),
    "more dimensions in the smaller one": (empty(5), empty(1, 1, 1)),
    "no dimensions": (empty(2, 3), empty()),
    "half precision": (half, empty(4, dtype=torch.bfloat16)),
    "two dtypes": (half, empty(4)),
    "whole numbers": (empty(2, dtype=torch.int64), empty(2, dtype=torch.int64)),
    "transposed": (square.t(), square),
    "both transposed": (square.t(), square.t()),
    "channels last": (empty(2, 4, 5, 3).permute(0, 3, 1, 2), empty(2, 3, 4, 5)),
    "expanded": (empty(3, 1).expand(3, 4), empty(4)),
    "nothing": (empty(0, 4), empty(4)),
}
CASES: list[tuple[Any, tuple, dict[str, Any]]] = [
    *((function, pair, {}) for function in (aten.add.Tensor, aten.mul.Tensor) for pair in PAIRS.values()),
    *((aten.where.self, (empty(2, 3, 4, dtype=torch.bool), *pair), {}) for pair in list(PAIRS.values())[:4]),
    (aten.where.self, (empty(2, 1, dtype=torch.bool), empty(), empty()), {}),
    (aten.where.self, (empty(2, dtype=torch.bool), half[0, 0, :2], empty(2)), {}),
    (aten.sub.Tensor, (square, square), {"alpha": 2}),
    (aten.mul.Tensor, (half, 2.5), {}),
    (aten.mul.Tensor, (empty(2, dtype=torch.int64), 2.5), {}),
    (aten.mul.Tensor, (square, 1j), {}),
    (aten.gelu.default, (half,), {"approximate": "tanh"}),
    (aten.gelu_backward.default, (half, half), {"approximate": "tanh"}),
    (aten.silu.default, (square.t(),), {}),
    (aten.neg.default, (square,), {}),
    (aten.addmm.default, (empty(5), empty(3, 4), empty(5, 4).t()), {"beta": 2}),
    (aten.native_group_norm.default, (empty(2, 8, 3, 4), *norm_of_groups), {}),
    (aten.native_group_norm.default, (empty(2, 3, 4, 8).permute(0, 3, 1, 2), *norm_of_groups), {}),
    (aten.native_group_norm.default, (empty(2, 8, 3, 4, dtype=torch.bfloat16), *norm_of_groups), {}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), CASES, ids=str)
def test_shapes_strides_and_dtypes_are_torchs(function: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    layouts = []
    for rule in (function, RULES[function]):
        results = rule(*args, **kwargs)
        results = results if isinstance(results, tuple) else (results,)
        assert all(each.is_meta for each in results)
        layouts.append([(each.shape, each.stride(), each.dtype) for each in results])
    assert layouts[1] == layouts[0]
