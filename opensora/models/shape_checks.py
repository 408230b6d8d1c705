"""The error for a tensor whose shape a model does not take, and the checks that raise it."""

from collections.abc import Sequence

from opensora.errors import OpenSoraError


class ShapeError(OpenSoraError, ValueError):
    """A size does not fit the model."""


def triple(where: str, sizes: Sequence[int | None]) -> tuple[int, int, int]:
    """(T, H, W) as a tuple of ints; ShapeError for anything but three positive integers."""
    whole = [int(n) for n in sizes if n is not None and int(n) == n and n >= 1]
    if len(sizes) != 3 or len(whole) != 3:
        raise ShapeError(f"{where}: {list(sizes)}; three positive whole numbers (frames, rows, columns) are needed")
    return whole[0], whole[1], whole[2]


def exact_div(where: str, whole: int, part: int) -> int:
    """whole / part, or ShapeError when that is not whole."""
    if part < 1 or whole % part:
        raise ShapeError(f"{where}: {whole} is not a multiple of {part}; change one of the two")
    return whole // part
