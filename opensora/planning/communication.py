"""Bytes that a rank sends, by arithmetic; docs/parallelism.md has the formulas.

A ring passes (n - 1) / n of m bytes on for a reduce-scatter or an all-gather, and twice that for an all-reduce
(Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
"""

from dataclasses import dataclass

from opensora.parallel.sequence_parallel import Mode


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
    """Bytes that a plugin sends for `parameters` trained elements shared by `ranks` of `micro_batches` a step each.

    weight_bytes: of an element the model runs with. wire_bytes: of a gradient element on the wire. stays_gathered:
    elements that fsdp gathers for the forward and keeps until the backward has used them.
    """
    once = parameters * (ranks - 1) / ranks  # elements sent in one reduce-scatter or all-gather
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


def sequence_bytes(
    *,
    ranks: int,
    mode: Mode,
    batch: int,
    frames: int,
    patches: int,
    width: int,
    heads: int,
    depth: int,
    out_features: int,
    itemsize: int = 4,
    recomputed: bool = False,
) -> int:
    """Bytes that each rank of a sequence group sends in one forward and backward of a model of `depth` STDiT blocks.

    A block attends once over all patches of a frame; attention along time and to the text needs no exchange.
    ranks: of the sequence group. frames, patches: of the token grid, after patching. out_features: numbers per token
    after the final layer. recomputed: the backward computes the blocks again.
    Sources: an all-to-all of m bytes per rank sends (n - 1) / n of them (Jacobs et al. 2023, arXiv:2309.14509, sec. 3);
    dsp switches the tokens twice (Zhao et al. 2024, arXiv:2403.10266), ulysses queries, keys, values and the result.
    """
    if ranks == 1:
        return 0
    own = -(-patches // ranks)  # patches of each frame on one rank
    if mode == "dsp":
        switched = 2 * -(-frames // ranks) * own * width
    else:
        switched = 4 * frames * own * -(-heads // ranks) * (width // heads)
    passes = 3 if recomputed else 2
    blocks = depth * passes * switched
    ends = frames * own * (width + out_features)  # the split sends in the backward, the gather in the forward
    return (ranks - 1) * batch * itemsize * (blocks + ends)
