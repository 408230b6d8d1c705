"""Detects steps whose loss or gradient went wrong. Then the run stops, or goes on as if the step had not been.

A skipped step changes no weight, moment, moment count or average, nor any of the discriminator. It still counts as a
step: the data, the learning rate's schedule and the saves go on after it.
"""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, Literal

from opensora.parallel.collectives import any_rank

Policy = Literal["stop", "skip"]
MODEL = "model"  # the engine whose gradient norm is logged and has a median


class AnomalyDetector:
    """on_nan: the reaction to a loss or gradient norm that is not finite.

    spike_factor: a loss or gradient norm above this many times its median is a spike; None = there are none.
    spike_window: number of accepted steps that the median is of; before that many steps nothing is a spike.
    on_spike: the reaction to a spike. max_skips: allowed number of steps skipped in a row; one more ends the run.
    loss_changes_at: the optimizer step from which the loss is another one, because a discriminator joins; the medians
    begin anew there.
    """

    def __init__(
        self,
        on_nan: Policy = "stop",
        spike_factor: float | None = None,
        spike_window: int = 100,
        on_spike: Policy = "skip",
        max_skips: int = 10,
        loss_changes_at: int | None = None,
    ):
        self.policies: dict[str, Policy] = {"nan": on_nan, "spike": on_spike}
        self.spike_factor = spike_factor
        self.max_skips = max_skips
        self.loss_changes_at = loss_changes_at
        self.skipped = 0  # steps of the whole run
        self.in_a_row = 0
        self.ends_run = False  # whether the last anomaly is to end the run
        self._history = {name: deque[float](maxlen=spike_window) for name in ("loss", "gradient norm")}

    def check(self, step: int, loss: float, grad_norms: Mapping[str, float]) -> str | None:
        """The anomaly of optimizer step `step` in words; None when it may be made. All ranks call, once a step.

        loss: of the global batch. grad_norms: of each engine by name, before clipping. The result is the same on every
        rank.
        """
        if step == self.loss_changes_at:
            self._reset()
        values = {"loss": loss}
        for name, norm in grad_norms.items():
            values["gradient norm" if name == MODEL else f"{name}'s gradient norm"] = norm
        kind, anomaly = self._find(values)
        if kind is not None:
            self.skipped += 1
            self.in_a_row += 1
            self.ends_run = self.policies[kind] == "stop" or self.in_a_row > self.max_skips
            return anomaly
        self.in_a_row = 0
        if self.spike_factor is not None:
            for name, history in self._history.items():
                history.append(values[name])
        return None

    def state(self) -> dict[str, Any]:
        """The numbers a resumed run needs to decide alike, as JSON."""
        history = {name: list(values) for name, values in self._history.items()}
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "usual": history}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Load the result of `state()`; of a longer window the newest values."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
        for name, values in self._history.items():
            values.clear()
            values.extend(state["usual"][name])

    def _reset(self) -> None:
        for values in self._history.values():
            values.clear()

    def _find(self, values: Mapping[str, float]) -> tuple[str | None, str | None]:
        """(kind, anomaly in words), or (None, None); the same on every rank."""
        for name, value in values.items():
            if not math.isfinite(value):  # sums over all ranks: no rank sees another value
                return "nan", f"the {name} is {value}"
        if self.spike_factor is None:
            return None, None
        spike = self._find_spike(values, self.spike_factor)
        # devices may round differently in the last bit, and just there a limit may lie
        if any_rank(spike is not None):
            return "spike", spike or "another rank found a spike"
        return None, None

    def _find_spike(self, values: Mapping[str, float], factor: float) -> str | None:
        for name, history in self._history.items():
            if len(history) < (history.maxlen or 0):
                continue
            middle = median(history)
            if middle > 0 and values[name] > factor * middle:  # a loss that may be negative has no scale of its own
                return f"the {name} is {values[name]:.6g}, {values[name] / middle:.3g} times its median"
        return None
