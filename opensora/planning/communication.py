"""Bytes that ranks send for the tokens they share, by arithmetic; docs/planning.md has the formulas."""

from opensora.parallel.sequence_parallel import Mode


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
