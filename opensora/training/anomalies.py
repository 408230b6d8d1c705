"""What happens to a step whose loss or gradient went wrong: the run stops, or goes on as if it had not been.

A skipped step changes no weight, moment, moment count or average, of the discriminator neither. It still counts as a
step: the data, the learning rate's schedule and the saves go on after it.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from opensora.parallel.collectives import any_rank
from opensora.parallel.engine import Engine
from opensora.training.discriminator import Rival

Policy = Literal["stop", "skip"]


@dataclass(frozen=True)
class Outcome:
    """What became of one optimizer step."""

    grad_norm: float  # before clipping
    trouble: str | None = None  # why nothing was updated, in words
    stop: bool = False  # whether the run is to end here


class Guard:
    """on_nan: what to do where a loss or gradient norm is not finite.

    spike_factor: a loss or gradient norm above this many times its median is a spike; None = there are none.
    spike_window: accepted steps that the median is of; until there are as many, nothing is a spike.
    on_spike: what to do then. max_skips: steps skipped in a row that are borne; one more ends the run.
    """

    def __init__(
        self,
        on_nan: Policy = "stop",
        spike_factor: float | None = None,
        spike_window: int = 100,
        on_spike: Policy = "skip",
        max_skips: int = 10,
    ):
        self.policies: dict[str, Policy] = {"nan": on_nan, "spike": on_spike}
        self.spike_factor = spike_factor
        self.max_skips = max_skips
        self.skipped = 0  # steps of the whole run
        self.in_a_row = 0
        self._usual = {name: deque[float](maxlen=spike_window) for name in ("loss", "gradient norm")}

    def step(self, engine: Engine, rival: Rival | None, loss: float, factor: float, step: int) -> Outcome:
        """Update all weights or none. loss: of the global batch. factor: of the base learning rate, for the rival."""
        if rival is not None and step == rival.start:
            self._forget()  # the loss is another one from here on
        found: dict[str, str] = {}

        def accept(norm: float) -> bool:
            values = {"loss": loss, "gradient norm": norm}

            def accept_both(rival_norm: float) -> bool:
                found.update(self._judge({**values, "discriminator's gradient norm": rival_norm}))
                return not found

            if rival is None:
                return accept_both(0.0)
            rival.step(factor, accept_both)
            return not found

        grad_norm = engine.step(accept)
        for kind, trouble in found.items():
            self.skipped += 1
            self.in_a_row += 1
            return Outcome(grad_norm, trouble, self.policies[kind] == "stop" or self.in_a_row > self.max_skips)
        self.in_a_row = 0
        if self.spike_factor is not None:
            self._usual["loss"].append(loss)
            self._usual["gradient norm"].append(grad_norm)
        return Outcome(grad_norm)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to decide alike, as JSON."""
        usual = {name: list(values) for name, values in self._usual.items()}
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "usual": usual}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state()` gave; of a longer window the newest."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        for name, values in self._usual.items():
            values.clear()
            values.extend(state["usual"][name])

    def _forget(self) -> None:
        for values in self._usual.values():
            values.clear()

    def _judge(self, values: Mapping[str, float]) -> dict[str, str]:
        """{kind: what is wrong}, or nothing; the same on every rank."""
        for name, value in values.items():
            if not math.isfinite(value):  # sums over all ranks: no rank sees another value
                return {"nan": f"the {name} is {value}"}
        if self.spike_factor is None:
            return {}
        trouble = self._spike(values, self.spike_factor)
        # devices may round differently in the last bit, and just there a limit may lie
        if any_rank(trouble is not None):
            return {"spike": trouble or "another rank found a spike"}
        return {}

    def _spike(self, values: Mapping[str, float], factor: float) -> str | None:
        for name, usual in self._usual.items():
            if len(usual) < (usual.maxlen or 0):
                continue
            middle = median(usual)
            if middle > 0 and values[name] > factor * middle:  # a loss that may be negative has no scale of its own
                return f"the {name} is {values[name]:.6g}, {values[name] / middle:.3g} times its median"
        return None
