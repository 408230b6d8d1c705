import torch
from torch import nn

from opensora.parallel.reducer import OrderedEmitter


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
