"""Sequence parallelism: the ranks of a group share the tokens of one sample. Put on from outside, by filling seams.

Tokens [B, T, S, D] (frames, patches of a frame) are cut along S between a model's blocks. Attention that needs all of
S gets it by one all-to-all there and one back: with whole frames but only some of the T ("dsp": Zhao et al. 2024,
arXiv:2403.10266), or with all tokens but only some of the heads ("ulysses": Jacobs et al. 2023, arXiv:2309.14509).
What the group does not divide is padded with zeros where it is cut and narrowed where it is made whole, so that
attention never sees padding.
"""

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from opensora.errors import ConfigError
from opensora.models.layers.seam import Seam

Mode = Literal["dsp", "ulysses"]
_SORT: dict[str, str] = {"dsp": "frames", "ulysses": "heads"}


def shard_sequence(model: nn.Module, group: dist.ProcessGroup | None = None, mode: Mode = "dsp") -> nn.Module:
    """Have the ranks of `group` (None = all ranks) share the tokens of every call of `model`, which is returned.

    Every rank must call it with the same inputs, draw the same where it draws (drop_path), and gets the same whole
    output. Parameters and their names stay as they are. Gradients are such that their plain mean over all ranks, those
    of other groups included, is that of the mean loss. Nothing changes in a group of one.
    mode: which switches of modules that offer both sorts are used; modules of one sort use that.
    Raises ConfigError for a model without seams, an unknown mode or a second call.
    """
    if mode not in _SORT:
        raise ConfigError(f"sequence parallelism: mode {mode!r}; allowed: {', '.join(map(repr, _SORT))}; correct it")
    seams = [module for module in model.modules() if isinstance(module, Seam)]
    missing = {"split", "gather"} - {seam.kind for seam in seams}
    if missing:
        raise ConfigError(
            f"sequence parallelism: {type(model).__name__} has no Seam of kind {' or '.join(sorted(missing))}; a model "
            "needs both around its blocks; add them, or run without sequence parallelism"
        )
    if any(isinstance(seam, _ActiveSeam) for seam in seams):
        raise ConfigError(
            f"sequence parallelism: the seams of {type(model).__name__} are filled already; it may be put on once"
        )
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return model
    install_seams(model, Layout(group), mode)
    return model


def install_seams(model: nn.Module, layout: "Layout", mode: Mode) -> None:
    """Have the seams that `mode` uses cut and join as `layout` does."""
    for module in model.modules():
        children = [child for child in module.children() if isinstance(child, Seam)]
        sorts = {child.over for child in children if child.kind == "switch"}
        for child in children:
            if child.kind != "switch" or len(sorts) == 1 or child.over == _SORT[mode]:
                child.__class__ = _ActiveSeam
                cast(_ActiveSeam, child).layout = layout


def bytes_sent(model: nn.Module) -> int:
    """Bytes that the seams of `model` have handed to other ranks since `shard_sequence`; 0 where none are filled.

    What a rank keeps for itself is not counted, padding is. See volume.py for what it should be.
    """
    return next((module.layout.sent for module in model.modules() if isinstance(module, _ActiveSeam)), 0)


class Layout:
    """The group, and how long the axes are that are cut now, by the numbers that seams give them."""

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.lengths: dict[int, int] = {}
        self.sent = 0  # bytes, to other ranks

    def __deepcopy__(self, memo: dict[int, Any]) -> "Layout":
        return self  # a copy of the model lives in the same group

    def part(self, length: int) -> int:
        """Places that each rank holds of an axis, padding included."""
        return -(-length // self.size)

    def own(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's slice, filled up with zeros."""
        length = whole.shape[dim]
        part = self.part(length)
        start, stop = (min(rank * part, length) for rank in (self.rank, self.rank + 1))
        piece = whole.narrow(dim, start, stop - start)
        # A copy: a view would keep the whole alive.
        return _padded(piece, dim, part) if stop - start < part else piece.clone(memory_format=torch.contiguous_format)

    def gather(self, piece: Tensor, dim: int, length: int) -> Tensor:
        """The inverse of `own`, on every rank."""
        pieces = piece.new_empty(self.size, *piece.shape)
        self.all_gather(pieces.view(-1), piece.contiguous().view(-1))
        self.sent += (self.size - 1) * piece.nbytes
        return _joined(pieces, dim, length)

    def switch(self, x: Tensor, dim: int, other: int, length: int) -> Tensor:
        """Make `dim` whole, `length` places, and leave each rank its slice of `other`."""
        part = self.part(x.shape[other])
        cut = _padded(x, other, self.size * part).unflatten(other, (self.size, part))
        cut = cut.movedim(other % x.ndim, 0).contiguous()
        pieces = torch.empty_like(cut)
        self.all_to_all(pieces, cut)
        self.sent += cut.nbytes // self.size * (self.size - 1)
        return _joined(pieces, dim, length)

    def all_gather(self, pieces: Tensor, piece: Tensor) -> None:
        """Every rank's piece, one behind the other; gloo knows two shapes only: flat, or along the first axis."""
        dist.all_gather_into_tensor(pieces, piece, group=self.group)

    def all_to_all(self, pieces: Tensor, cut: Tensor) -> None:
        """Place i of `cut` goes to rank i, place j of `pieces` comes from rank j."""
        dist.all_to_all_single(pieces, cut, group=self.group)


def _padded(x: Tensor, dim: int, length: int) -> Tensor:
    if x.shape[dim] == length:
        return x
    after = x.ndim - 1 - dim % x.ndim
    return F.pad(x, (0, 0) * after + (0, length - x.shape[dim]))


def _joined(pieces: Tensor, dim: int, length: int) -> Tensor:
    """Every rank's piece of x, [ranks, *x.shape] -> one behind the other along x's `dim`, without the padding."""
    dim %= pieces.ndim - 1
    return pieces.movedim(0, dim).flatten(dim, dim + 1).narrow(dim, 0, length)


class _ActiveSeam(Seam):
    """In place of Seam's class, as its identity cannot stay; a deep copy of the model keeps it."""

    layout: Layout

    def forward(self, x: Tensor) -> Tensor:
        return _SEAMS[self.kind](x, self.layout, self.dim, self.other)


# Every rank computes the whole loss L from the gathered output, so its gradient g there is whole as well. A rank's
# parameters between the seams get the part of dL that its tokens have: parts must be added up, while the ranks are
# going to be averaged. Hence `gather` multiplies by their number going backward, and `split` takes that out again for
# what comes before the blocks, which every rank computes whole.
class _Split(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, dim: int, other: None) -> Tensor:
        ctx.layout, ctx.dim, ctx.length = layout, dim, x.shape[dim]
        layout.lengths[dim] = x.shape[dim]
        return layout.own(x, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.layout.gather(grad, ctx.dim, ctx.length) / ctx.layout.size, None, None, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, dim: int, other: None) -> Tensor:
        ctx.layout, ctx.dim, ctx.lengths = layout, dim, dict(layout.lengths)
        return layout.gather(x, dim, layout.lengths[dim])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Blocks may be computed again after this; since then the model may have seen a clip of another size.
        ctx.layout.lengths = dict(ctx.lengths)
        return ctx.layout.own(grad, ctx.dim) * ctx.layout.size, None, None, None


class _Switch(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, dim: int, other: int) -> Tensor:
        ctx.layout, ctx.dim, ctx.other, ctx.length = layout, dim, other, x.shape[other]
        layout.lengths[other] = x.shape[other]
        return layout.switch(x, dim, other, layout.lengths[dim])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.layout.switch(grad, ctx.other, ctx.dim, ctx.length), None, None, None


_SEAMS = {"split": _Split.apply, "gather": _Gather.apply, "switch": _Switch.apply}
