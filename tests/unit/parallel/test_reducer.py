from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.parallel import collectives, reducer
from opensora.parallel.reducer import OrderedEmitter, Reducer


def test_every_order_of_arrival_leaves_in_the_same_order() -> None:
    a, b, c = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    left: list[nn.Parameter] = []
    order = OrderedEmitter([a, b, c], left.append)
    order.ready(b)
    assert left == []
    order.ready(a)
    assert [each is expected for each, expected in zip(left, [a, b], strict=True)] == [True, True]
    order.flush()
    assert left[2] is c
    order.ready(a)  # a new backward begins at the front again
    assert left[3] is a
    assert len(left) == 4


@pytest.mark.parametrize("bucket_bytes", [1, 12, 10**6])
def test_collectives_of_two_groups_start_in_one_order_on_every_rank(
    monkeypatch: pytest.MonkeyPatch, bucket_bytes: int
) -> None:
    """Whatever parameters the samples of a rank use: else two communicators could wait for each other."""
    log: list[tuple[Any, int]] = []

    def all_reduce(flat: Tensor, group: Any, async_op: bool) -> Any:
        log.append((group, flat.numel()))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(reducer.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(collectives, "world_size", lambda group=None: {None: 4, "pair": 2, "alone": 1}[group])
    monkeypatch.setattr(collectives, "sum_over_ranks", lambda tensor, group=None: torch.ones_like(tensor))
    logs = []
    for unused in ([], [1], [6], [0, 3, 5], [2, 4]):
        parameters = [nn.Parameter(torch.ones(size)) for size in (1, 2, 3, 4, 5, 6, 7)]
        groups = {id(parameters[i]): group for i, group in ((1, "pair"), (3, "pair"), (4, "alone"), (6, "pair"))}
        averages = Reducer(parameters, bucket_bytes, groups)  # type: ignore[arg-type]
        log.clear()
        with averages.averaging(last=True):
            sum(2 * each.sum() for i, each in enumerate(parameters) if i not in unused).backward()
        logs.append(list(log))
        assert {group: sum(n for each, n in log if each == group) for group in (None, "pair", "alone")} == {
            None: 1 + 3 + 6,
            "pair": 2 + 4 + 7,
            "alone": 0,
        }
        for i, parameter in enumerate(parameters):
            divided = {0: 4, 1: 2, 2: 4, 3: 2, 4: 1, 5: 4, 6: 2}[i]
            expected = None if i in unused and i == 4 else 0.0 if i in unused else 2 / divided
            assert (None if parameter.grad is None else parameter.grad.unique().tolist()) == (
                None if expected is None else [expected]
            )
    assert all(each == logs[0] for each in logs)
