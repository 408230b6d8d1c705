"""Sequence parallelism on paper: shapes, memory and traffic of one rank of a group that is not there."""

from torch import Tensor, nn

from opensora.parallel.sequence import Layout, Mode, fill_seams


class PaperLayout(Layout):
    """The first of `size` ranks, which holds as much as any."""

    def __init__(self, size: int):
        self.group, self.size, self.rank = None, size, 0
        self.lengths = {}
        self.sent = 0

    def all_gather(self, pieces: Tensor, piece: Tensor) -> None: ...

    def all_to_all(self, pieces: Tensor, cut: Tensor) -> None: ...


def shard_on_paper(model: nn.Module, size: int, mode: Mode = "dsp") -> PaperLayout:
    """Fill the seams of a model on the meta device as for a group of `size`; its `sent` counts the bytes of one rank."""
    layout = PaperLayout(size)
    if size > 1:
        fill_seams(model, layout, mode)
    return layout
