"""ShapeError and checks of sizes that raise it."""

from collections.abc import Sequence

from opensora.errors import OpenSoraError


class ShapeError(OpenSoraError, ValueError):
    """A size does not fit the model."""


def as_3_tuple(where: str, sizes: Sequence[int | None]) -> tuple[int, int, int]:
    """(T, H, W) as a tuple of ints. Raises ShapeError for anything but three positive integers."""
    valid = [int(n) for n in sizes if n is not None and int(n) == n and n >= 1]
    if len(sizes) != 3 or len(valid) != 3:
        raise ShapeError(f"{where}: {list(sizes)}; three positive whole numbers (frames, rows, columns) are needed")
    return valid[0], valid[1], valid[2]


def exact_div(where: str, whole: int, part: int) -> int:
    """whole / part. Raises ShapeError when part does not divide whole."""
    if part < 1 or whole % part:
        raise ShapeError(f"{where}: {whole} is not a multiple of {part}; change one of the two")
    return whole // part
