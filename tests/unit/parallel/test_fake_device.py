"""The fake device of tests sees what a GPU would wait for or refuse."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from opensora.parallel import world
from tests.support.fake_device import FakePlatform, Recorder, fake_cuda


def noted(recorder: Recorder) -> list[tuple[str, str]]:
    return [(op.name, op.kind) for op in recorder.take() if op.kind != "view"]


def test_copies_and_kernels_are_distinguished() -> None:
    with fake_cuda() as recorder:
        x = torch.arange(4.0).to("cuda")
        assert noted(recorder) == [("copy", "to device")]
        assert (x + 1).sum().item() == 1.0
        assert noted(recorder) == [("add", "kernel"), ("sum", "kernel"), ("item", "to host")]
        assert torch.equal(x.cpu(), torch.ones(4))
        assert noted(recorder) == [("copy", "to host")]
        torch.cuda.synchronize()
        assert noted(recorder) == [("synchronize", "to host")]
        assert torch.arange(4.0).sum().item() == 6.0  # the host computes
        assert noted(recorder) == []


def test_backward_runs_with_the_lists_of_cuda_autocast() -> None:
    with fake_cuda():
        weight = torch.ones(8, 8, device="cuda", requires_grad=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            product = torch.ones(2, 8, device="cuda") @ weight
            total = product.sum()
        total.backward()
        assert (product.dtype, total.dtype) == (torch.bfloat16, torch.float32)  # on the CPU the sum would stay narrow
        assert isinstance(weight.grad, Tensor)
        assert weight.grad.device.type == "cuda"


def test_collectives_are_noted_with_their_ranks() -> None:
    with fake_cuda(rank=2, size=4, sp_size=2) as recorder:
        assert (world.current().data_rank, world.current().device) == (1, torch.device("cuda", 0))
        recorder.take()
        dist.all_reduce(torch.zeros(3, device="cuda"))
        dist.all_reduce(torch.zeros(5), group=world.current().sequence_group)
        ops = [op for op in recorder.take() if op.kind == "collective"]
    assert [(op.group, op.numel, op.device) for op in ops] == [("0,1,2,3", 3, "cuda"), ("2,3", 5, "cpu")]


def test_group_of_devices_refuses_tensors_of_the_host() -> None:
    with fake_cuda(size=2):
        group = dist.new_group([0, 1], backend="cuda:fake")
        with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
            dist.all_reduce(torch.zeros(1), group=group)


def test_nothing_stays_behind() -> None:
    current_device = torch.cuda.current_device
    with fake_cuda():
        assert torch.cuda.current_device() == 0
        assert FakePlatform().device_count() == 8
    assert torch.cuda.current_device is current_device
    assert not dist.is_initialized()
    x = torch.ones(2, requires_grad=True)
    (2 * x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 2.0]
