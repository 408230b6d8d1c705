"""Exponential moving average of the weights, in float32, each rank keeping only its piece."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from opensora.parallel.engine import Engine


class Ema:
    """average = decay * average + (1 - decay) * weights, once per optimizer step; begins at the weights."""

    def __init__(self, engine: Engine, decay: float):
        self._engine = engine
        self._decay = decay
        self._pieces = {name: piece.clone() for name, piece in engine.masters()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after `engine.step()`, not after every micro-batch."""
        masters = dict(self._engine.masters())
        torch._foreach_lerp_(list(self._pieces.values()), [masters[name] for name in self._pieces], 1 - self._decay)

    def in_place(self) -> AbstractContextManager[None]:
        """The model runs on the average while the context is open, then on its own weights, bit for bit. All ranks call."""
        return self._engine.replaced(self._pieces)

    def state(self) -> dict[str, Any]:
        """Tensors under `ema/NAME`, to save or to load into. All ranks call."""
        return {**self._engine.sharded(self._pieces, "ema")}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the entries `state()` names. All ranks call."""
        self._engine.load_sharded(self._pieces, "ema", state)

    def weights(self) -> dict[str, Tensor]:
        """Whole averaged weights on the main rank, {} elsewhere, as `Engine.full_weights`. All ranks call."""
        return self._engine.full_weights(self._pieces)
