import pytest
import torch

from opensora.parallel import collectives
from tests.dist import run_ranks


def exchange() -> dict:
    rank = collectives.rank()
    own = torch.tensor([1.0, 10.0]) * (rank + 1)
    result = {
        "sum": collectives.sum_over_ranks(own).tolist(),
        "own": own.tolist(),
        "objects": collectives.gather_objects({"rank": rank}),
        "first": collectives.broadcast_object(f"from {rank}"),
        "any": (collectives.any_rank(rank == 1), collectives.any_rank(False)),
    }
    tensor = torch.arange(6.0).reshape(2, 3).t() + rank  # not contiguous
    collectives.broadcast_tensors([tensor])
    collectives.barrier()
    return {**result, "broadcast": tensor.tolist()}


def test_collectives_on_two_ranks() -> None:
    first, second = run_ranks(exchange, 2)
    assert first["sum"] == second["sum"] == [3.0, 30.0]
    assert second["own"] == [2.0, 20.0]
    assert second["objects"] == [{"rank": 0}, {"rank": 1}]
    assert second["first"] == "from 0"
    assert first["any"] == second["any"] == (True, False)
    assert second["broadcast"] == torch.arange(6.0).reshape(2, 3).t().tolist()


def test_collectives_without_group() -> None:
    alone = exchange()
    assert alone["sum"] == [1.0, 10.0]
    assert alone["objects"] == [{"rank": 0}]
    assert alone["any"] == (False, False)


def cut_and_mend(numel: int) -> tuple[int, bool]:
    flat = torch.arange(float(numel))
    piece = collectives.shard(flat)
    return piece.numel(), torch.equal(collectives.gather_shards(piece, numel), flat)


@pytest.mark.parametrize(
    ("numel", "lengths"), [(8, [2, 2, 2, 2]), (7, [2, 2, 2, 1]), (5, [2, 2, 1, 0]), (1, [1, 0, 0, 0])]
)
def test_shards_are_torch_chunks_and_gather_to_whole(numel: int, lengths: list[int]) -> None:
    assert run_ranks(cut_and_mend, 4, numel) == [(length, True) for length in lengths]
