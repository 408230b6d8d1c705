"""The cache of one clip over its denoising steps."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ClipCache:
    """Everything that a denoiser computes for one clip and that no step changes: text, positions, size, given frames.

    A denoiser's first forward fills it and the later ones read it; no gradients. Every clip, and every number of rows in
    its batch, needs a cache of its own: a forward that finds a value here does not look at its inputs again.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def keep(self, name: str, make: Callable[[], T]) -> T:
        """The value of this name; `make` is called the first time."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]


def keep(cache: ClipCache | None, name: str, make: Callable[[], T]) -> T:
    """The value that `make` gives, from the cache if there is one."""
    return make() if cache is None else cache.keep(name, make)
