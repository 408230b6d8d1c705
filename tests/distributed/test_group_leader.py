"""One rank loads and computes for its group: broadcast values, their checks, and failures of that rank."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from opensora.errors import DataError, OpenSoraError
from opensora.parallel import collectives, group_leader, world
from opensora.types import Batch
from tests.dist import run_ranks


def batch(number: int, data_rank: int) -> Batch:
    """A batch that differs for each argument, with a tensor of each kind that a batch may hold."""
    rng = torch.Generator().manual_seed(10 * data_rank + number)
    return Batch(
        video_BCTHW=torch.randn(2, 3, 1, 4, 5, generator=rng).transpose(3, 4),  # not contiguous
        captions=["a cat", f"clip {number} of {data_rank}"],
        fps_B=torch.randn(2, generator=rng).bfloat16(),
        step=number,
        sample_ids=[2 * data_rank, 2 * data_rank + 1],
        rows=[number],
        bad_rows=[],
    )


def take_all() -> tuple[int, list[bool]]:
    """(number of batches that this rank made, True for each received batch that is the batch of its group)."""
    here, made = world.split_sequence_groups(2), 0

    def load() -> Iterator[Batch]:
        nonlocal made
        for number in range(3):
            made += 1
            yield batch(number, here.data_rank)

    received = list(group_leader.broadcast_batches(load, here))
    assert len(received) == 3
    return made, [same(each, batch(number, here.data_rank)) for number, each in enumerate(received)]


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(
        a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        for a, b in pairs
    )


def test_leader_loads_for_its_group() -> None:
    assert run_ranks(take_all, 4) == [(3, [True] * 3), (0, [True] * 3)] * 2


def shared_values() -> list[bool]:
    """Broadcast None and a nested value with an empty, a 0-dimensional and a bool tensor; True where equal."""
    here = world.split_sequence_groups(2)
    values: list[Any] = [
        None,
        {"empty": torch.empty(0, 3), "one": (torch.tensor(2.5, dtype=torch.float64), [torch.tensor([True, False])])},
    ]
    received = [
        group_leader.run_on_leader(lambda value=value: value if here.is_group_leader else 1 / 0, here)
        for value in values
    ]
    nested = received[1]
    return [
        received[0] is None,
        nested["empty"].shape == (0, 3),
        nested["one"][0].item() == 2.5,
        nested["one"][1][0].tolist() == [True, False],
    ]


def test_broadcast_values_arrive_unchanged() -> None:
    assert run_ranks(shared_values, 2) == [[True] * 4] * 2


class Stubborn(Exception):
    """An exception that does not survive pickling."""

    def __init__(self, one: int, two: int):
        super().__init__(f"{one} and {two}")


def fail(kind: str) -> str:
    here = world.split_sequence_groups(2)

    def load() -> Iterator[Batch]:
        yield batch(0, 0)
        raise DataError("rows.csv: all rows are bad") if kind == "data" else Stubborn(1, 2)

    batches = group_leader.broadcast_batches(load, here)
    next(batches)
    with pytest.raises(Exception) as caught:
        next(batches)
    return f"{type(caught.value).__name__}: {caught.value}"


def test_leader_failure_reaches_group() -> None:
    assert run_ranks(fail, 2, "data") == ["DataError: rows.csv: all rows are bad"] * 2
    assert run_ranks(fail, 2, "other") == ["Stubborn: 1 and 2", "RuntimeError: Stubborn: 1 and 2"]


def receive_badly(what: str) -> str:
    """Error of this rank if rank 3 of 4 receives a wrong number or is one batch ahead of the others."""
    here = world.split_sequence_groups(2)
    receive = collectives.broadcast_from

    def damage(tensor: Tensor, source: int, group: Any) -> None:
        receive(tensor, source, group)
        if here.global_rank == 3 and tensor.numel() > 100:
            tensor[7] += 1

    def late(values: dict[str, int]) -> dict[str, int]:
        return values | {"batch": values["batch"] + (what == "late" and here.global_rank == 3)}

    agree = group_leader.assert_group_agrees
    patches = (
        mock.patch.object(collectives, "broadcast_from", damage if what == "damage" else receive),
        mock.patch.object(group_leader, "assert_group_agrees", lambda w, values: agree(w, late(values))),
    )
    try:
        with patches[0], patches[1]:
            next(group_leader.broadcast_batches(lambda: iter([batch(0, here.data_rank)]), here))
    except OpenSoraError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("what", ["damage", "late"])
def test_differing_batches_raise(what: str) -> None:
    """All ranks of the group with the difference raise an error that names them; the other group continues."""
    messages = run_ranks(receive_badly, 4, what)
    assert messages[:2] == ["", ""]
    assert messages[2] == messages[3]
    assert "ranks 2 to 3 share each sample but do not hold the same: rank 2 has batch 0, checksum " in messages[2]
    assert "rank 3 has batch " + ("1" if what == "late" else "0") in messages[2]
