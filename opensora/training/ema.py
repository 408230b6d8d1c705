"""Exponential moving average of the weights, in float32, each rank keeping only its shard."""

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
        self._shards = {name: shard.clone() for name, shard in engine.master_shards()}

    @torch.no_grad()
    def update(self) -> None:
        """Call after `engine.update()`, not after every micro-batch."""
        masters = dict(self._engine.master_shards())
        torch._foreach_lerp_(list(self._shards.values()), [masters[name] for name in self._shards], 1 - self._decay)

    def applied(self) -> AbstractContextManager[None]:
        """The model runs on the average while the context is open, then on its own weights, bit for bit. All ranks call."""
        return self._engine.swapped_weights(self._shards)

    def state(self) -> dict[str, Any]:
        """Tensors under `ema/NAME`, to save or to load into. All ranks call."""
        return {**self._engine.state_entries(self._shards, "ema")}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load the entries that `state()` names. All ranks call."""
        self._engine.load_entries(self._shards, "ema", state)

    def weights(self) -> dict[str, Tensor]:
        """Whole averaged weights on the main rank, {} elsewhere, as `Engine.gather_state_dict`. All ranks call."""
        return self._engine.gather_state_dict(self._shards)
