"""Copies of a state in host memory."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from opensora.parallel.async_save import HostSnapshot
from tests.dist import one_rank


def test_copy_has_values_and_layout_of_its_source() -> None:
    """The source changes after each copy; its values, size and type change between copies."""
    with one_rank():
        mesh, snapshot = init_device_mesh("cpu", (1,)), HostSnapshot()
        for values in (torch.arange(4.0), torch.arange(4.0) + 1, torch.arange(6.0), torch.arange(6)):
            source = DTensor.from_local(values.clone(), mesh, [Shard(0)], run_check=False)
            copy = snapshot.copy({"sharded": source, "plain": source.to_local()})
            source.to_local().zero_()
            for part in (copy["sharded"].to_local(), copy["plain"]):
                assert torch.equal(part, values)
                assert part.dtype == values.dtype
            assert (copy["sharded"].shape, copy["sharded"].placements) == (values.shape, (Shard(0),))
