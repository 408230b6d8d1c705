"""Bytes that each plugin's exchange of gradients and weights sends, by arithmetic; docs/parallelism.md has the formulas.

A ring passes (n - 1) / n of m bytes on for a reduce-scatter or an all-gather, and twice that for an all-reduce
(Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one optimizer step."""

    gradients: int
    weights: int

    @property
    def total(self) -> int:
        return self.gradients + self.weights


def plugin_traffic(
    plugin: str,
    *,
    parameters: int,
    ranks: int,
    micro_batches: int,
    weight_bytes: int,
    wire_bytes: int,
    stays_gathered: int = 0,
) -> Traffic:
    """What a plugin sends for `parameters` trained elements shared by `ranks`, of which each has `micro_batches` a step.

    weight_bytes: of an element the model runs with. wire_bytes: of a gradient element on its way. stays_gathered: elements
    that fsdp gathers for the forward and keeps until the backward has used them.
    """
    once = parameters * (ranks - 1) / ranks  # elements passed on for one reduce-scatter or all-gather
    family = plugin.removesuffix("-seq")
    if family == "zero1":
        sent = 2 * wire_bytes * once, weight_bytes * once
    elif family == "zero2":
        sent = micro_batches * wire_bytes * once, weight_bytes * once
    elif family == "fsdp":
        # forward and backward each gather what does not stay
        gathers = 2 - stays_gathered / parameters
        sent = micro_batches * wire_bytes * once, micro_batches * gathers * weight_bytes * once
    else:
        sent = 2 * 4 * once, 0.0  # ddp: float32, once per step
    return Traffic(int(sent[0]), int(sent[1]))
