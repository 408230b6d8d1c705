"""Offload: networks wait in host memory, and only the one that works is on the device (diffusers' model CPU offload)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

HOST = torch.device("cpu")


class Movable(Protocol):
    """A module, or a text encoder."""

    def to(self, device: torch.device) -> Any: ...


class Offload:
    """Moves networks between the host and a device; one at a time is there, so the largest decides the memory.

    A network stays on the device until another one is needed: calls of the same one move nothing. Weights are copied bit for
    bit, so results do not change. release: gives memory that nothing uses back to the device.
    """

    def __init__(self, device: torch.device, release: Callable[[], object] = lambda: None):
        self.device = device
        self._release = release
        self._present: Movable | None = None  # on the device
        self._working: Movable | None = None  # inside `on_device`

    @contextmanager
    def on_device(self, network: Movable) -> Iterator[None]:
        """Inside, `network` is on the device; one that worked before (a preview is decoded in a step) returns afterwards."""
        before = self._working
        self._bring(network)
        self._working = network
        try:
            yield
        finally:
            self._working = before
            if before is not None:
                self._bring(before)

    def _bring(self, network: Movable) -> None:
        if self._present is network:
            return
        if self._present is not None:
            self._present.to(HOST)
            self._release()
        self._present = network  # before it is moved: of a move that fails, a part may have arrived
        network.to(self.device)
