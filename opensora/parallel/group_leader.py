"""Work that the first rank of a sequence group does for the whole group: loading, decoding and encoding clips.

It broadcasts the result, so the others never read a video and all ranks of the group see the same bits.
"""

import io
import pickle
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from opensora.errors import OpenSoraError
from opensora.parallel import collectives
from opensora.parallel.world import World

T = TypeVar("T")


def run_on_leader(make: Callable[[], T], world: World) -> T:
    """Call `make` on the first rank of the sequence group; return its result, or raise its error, on all of them.

    Tensors arrive bit for bit, those of the CPU on the CPU, others on the rank's own device. The rest must pickle.
    """
    return make() if world.sequence_size == 1 else _share(make, world)[0]


def broadcast_batches(make: Callable[[], Iterator[T]], world: World) -> Iterator[T]:
    """The batches of the iterator that `make` returns; in a sequence group only the first rank makes and reads it.

    Every batch is checked to be the same on all ranks of the group, by its number and a checksum of its contents.
    Raises OpenSoraError, naming the ranks, when it is not.
    """
    return make() if world.sequence_size == 1 else _batches(make, world)


def _batches(make: Callable[[], Iterator[T]], world: World) -> Iterator[T]:
    source: Iterator[T] | None = None

    def next_batch() -> tuple[T] | None:
        nonlocal source
        if source is None:
            source = iter(make())
        for batch in source:
            return (batch,)
        return None

    count = 0
    while True:
        batch, checksum = _share(next_batch, world)
        assert_group_agrees(world, {"batch": count, "checksum": checksum})
        if batch is None:
            return
        yield batch[0]
        count += 1


def assert_group_agrees(world: World, values: dict[str, int]) -> None:
    """Raise OpenSoraError on every rank of the sequence group unless all of them pass the same numbers."""
    if world.sequence_size == 1:
        return
    row = torch.tensor(list(values.values()), dtype=torch.int64)
    rows = collectives.gather_rows(row, world.sequence_group).tolist()
    if all(row == rows[0] for row in rows):
        return
    first = world.global_rank - world.sequence_rank
    reports = (
        f"rank {first + number} has {', '.join(f'{name} {value}' for name, value in zip(values, row, strict=True))}"
        for number, row in enumerate(rows)
    )
    raise OpenSoraError(
        f"sequence parallelism: ranks {first} to {first + len(rows) - 1} share each sample but do not hold the same: "
        f"{'; '.join(reports)}; they must be equal; start again from the last checkpoint, and look at that machine"
    )


class _Failure:
    """The error of the first rank, in a form that pickles."""

    def __init__(self, error: Exception):
        try:
            pickle.loads(pickle.dumps(error))
            self.error = error
        except Exception:  # an exception that cannot travel
            self.error = RuntimeError(f"{type(error).__name__}: {error}")


def _share(make: Callable[[], T], world: World) -> tuple[T, int]:
    """(the first rank's result, checksum of this rank's copy)."""
    value: Any = None
    if world.is_group_leader:
        try:
            value = make()
        except Exception as error:
            collectives.broadcast_object(_pack(_Failure(error))[0], world.sequence_group)
            raise
    message, tensors = _pack(value) if world.is_group_leader else (b"", [])
    message = collectives.broadcast_object(message, world.sequence_group)
    if not world.is_group_leader:
        value, tensors = _unpack(message, world.device)
        if isinstance(value, _Failure):
            raise value.error
    checksum = zlib.crc32(message)
    for tensor in tensors:
        if tensor.numel():
            raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            collectives.broadcast_from(raw, 0, world.sequence_group)
            checksum = zlib.crc32(raw.cpu().numpy().data, checksum)
    return value, checksum


class _Packer(pickle.Pickler):
    """Pickles everything but the tensors, which it lists."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: object) -> tuple[tuple[int, ...], torch.dtype, bool] | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return tuple(value.shape), value.dtype, value.device.type == "cpu"


class _Unpacker(pickle.Unpickler):
    """Puts an empty tensor in the place of each one, and lists them."""

    def __init__(self, file: io.BytesIO, device: torch.device):
        super().__init__(file)
        self.device = device
        self.tensors: list[Tensor] = []

    def persistent_load(self, pid: tuple[tuple[int, ...], torch.dtype, bool]) -> Tensor:
        shape, dtype, on_cpu = pid
        self.tensors.append(torch.empty(shape, dtype=dtype, device="cpu" if on_cpu else self.device))
        return self.tensors[-1]


def _pack(value: object) -> tuple[bytes, list[Tensor]]:
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return file.getvalue(), packer.tensors


def _unpack(message: bytes, device: torch.device) -> tuple[Any, list[Tensor]]:
    unpacker = _Unpacker(io.BytesIO(message), device)
    return unpacker.load(), unpacker.tensors
