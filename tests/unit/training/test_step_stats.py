"""The numbers of a step: totals by hand, and no copy to the host before the step ends."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from opensora.parallel import world
from opensora.training.loop import train_step
from opensora.training.step_stats import BINS, StepStats, bin_name, to_host
from opensora.training.task import MicroBatchLoss
from opensora.types import Batch
from tests.unit.training.test_loop import VALUES, alone, batches, training

__all__ = ["alone"]  # fixture


def test_bins_hold_the_ends_of_the_scale() -> None:
    stats = StepStats()
    batch = next(batches([[[0.0, 1.0, 0.0]]]))
    stats.add(batch, MicroBatchLoss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 0.9999]), 1))
    assert stats.all_reduce(world.current(), stop=False).loss_per_bin == {"0.0-0.1": 1.0, "0.9-1.0": 3.0}
    assert [bin_name(0), bin_name(BINS - 1)] == ["0.0-0.1", "0.9-1.0"]


def test_totals_are_float64_sums_of_float32_losses() -> None:
    """In float32 the sum of 1 and 2**-30 would be 1."""
    stats, small = StepStats(), 2.0**-30
    for samples in ([1.0], [small, small]):
        loss = MicroBatchLoss(torch.tensor(samples), None, 3, {"part": torch.tensor(samples).mean()})
        stats.add(next(batches([[samples]])), loss)
    totals = stats.all_reduce(world.current(), stop=True)
    assert totals.loss == totals.metrics["part"] == (1.0 + 2 * small) / 3
    assert (totals.tokens, totals.stop, totals.loss_per_bin) == (6, True, {})
    assert [each["loss"] for each in stats.per_sample()] == [1.0, small, small]
    assert [each["level"] for each in stats.per_sample()] == [None] * 3


def test_to_host_keeps_shapes_and_order() -> None:
    tensors = [torch.tensor([1.5, 2.5]), torch.tensor(3, dtype=torch.bfloat16), torch.zeros(0), torch.ones(2, 2)]
    host = to_host(tensors)
    assert all(each.dtype is torch.float64 for each in host)
    assert [each.tolist() for each in host] == [[1.5, 2.5], 3.0, [], [[1.0, 1.0], [1.0, 1.0]]]


class HostCopies(TorchDispatchMode):
    """Records every read of a tensor's value by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The reads so far. On the CPU some of the ways to read dispatch nothing, so these are recorded by name."""
    with HostCopies() as copies:
        for name in ("cpu", "tolist", "numpy"):
            plain = getattr(Tensor, name)

            def read(self: Tensor, *args: Any, name: str = name, plain: Any = plain, **kwargs: Any) -> Any:
                copies.reads.append(name)
                return plain(self, *args, **kwargs)

            monkeypatch.setattr(Tensor, name, read)
        yield copies.reads


def test_losses_reach_the_host_once_per_step(reads: list[str]) -> None:
    """Nothing is read while micro-batches are accumulated; then the losses, levels and metrics in one copy."""
    state, _ = training([[[1.0, 3.0]] * 4] * 2)
    reads_at_loss: list[int] = []
    loss, all_reduce = state.task.loss, StepStats.all_reduce

    def counted(model: Any, batch: Batch) -> MicroBatchLoss:
        reads_at_loss.append(len(reads))
        plain = loss(model, batch)
        return MicroBatchLoss(plain.loss_B, plain.noise_level_B, 1, {"part": plain.loss_B.detach().mean()})

    state.task.loss = counted
    before_totals: list[int] = []

    def reduce(self: StepStats, *args: Any, **kwargs: Any) -> Any:
        before_totals.append(len(reads))
        return all_reduce(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepStats, "all_reduce", reduce)
        record = train_step(state, 0)
    assert reads_at_loss == [0] * 4
    assert before_totals == [0]
    assert reads.count("cpu") == 2  # the step's numbers, and the gradient norm
    assert record.totals.metrics["part"] == record.totals.loss


def test_values_are_those_of_the_loop() -> None:
    state, _ = training(VALUES)
    record = train_step(state, 0)
    assert [each["place"] for each in record.stats.per_sample()] == [0, 1, 2, 3]
    assert [each["loss"] for each in record.stats.per_sample()] == [0.5, 4.5, 12.5, 24.5]
