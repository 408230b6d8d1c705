"""Sequence parallelism: the ranks of a group share the tokens of one sample. It is installed from outside, in the seams.

Tokens [B, T, S, D] (frames, patches of a frame) are split along S between a model's blocks. Attention that needs all of
S gets it by one all-to-all before it and one after it: with whole frames but only some of the T ("dsp": Zhao et al. 2024,
arXiv:2403.10266), or with all tokens but only some of the heads ("ulysses": Jacobs et al. 2023, arXiv:2309.14509).
An axis that the group does not divide is padded with zeros where it is split and narrowed where it is made whole, so
attention never sees padding.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from opensora.errors import ConfigError
from opensora.models.layers.seam import Seam
from opensora.parallel import collectives

TOKENS = 2  # the dimension that models split between their blocks
Mode = Literal["dsp", "ulysses"]
_AXIS: dict[str, str] = {"dsp": "frames", "ulysses": "heads"}  # that the ranks split inside attention


def shard_sequence(model: nn.Module, group: dist.ProcessGroup | None = None, mode: Mode = "dsp") -> nn.Module:
    """Have the ranks of `group` (None = all ranks) share the tokens of every call of `model`, which is returned.

    Every rank must call it with the same inputs and the same random state (drop_path), and gets the same whole output.
    Parameters and their names stay as they are. The plain mean of the gradients over all ranks, those of other groups
    included, is the gradient of the mean loss. Nothing changes in a group of one.
    mode: the switches that are used in modules that offer both axes; modules with one axis use that.
    Raises ConfigError for a model without seams, an unknown mode or a second call.
    """
    if mode not in _AXIS:
        raise ConfigError(f"sequence parallelism: mode {mode!r}; allowed: {', '.join(map(repr, _AXIS))}; correct it")
    seams = [module for module in model.modules() if isinstance(module, Seam)]
    missing = {"split", "gather"} - {seam.kind for seam in seams}
    if missing:
        raise ConfigError(
            f"sequence parallelism: {type(model).__name__} has no Seam of kind {' or '.join(sorted(missing))}; a model "
            "needs both around its blocks; add them, or run without sequence parallelism"
        )
    if any(seam.op is not None for seam in seams):
        raise ConfigError(
            f"sequence parallelism: the seams of {type(model).__name__} are in use already; call this once"
        )
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return model
    install_seams(model, SequenceSharding(group), mode)
    return model


def install_seams(model: nn.Module, sharding: "SequenceSharding", mode: Mode) -> None:
    """Make the seams that `mode` uses split and join tokens as `sharding` does."""
    for module in model.modules():
        children = [child for child in module.children() if isinstance(child, Seam)]
        axes = {child.axis for child in children if child.kind == "switch"}
        for child in children:
            if child.kind != "switch" or len(axes) == 1 or child.axis == _AXIS[mode]:
                child.op = SeamExchange(sharding, _FUNCTIONS[child.kind], child.dim, child.swap_dim)


def bytes_sent(model: nn.Module) -> int:
    """Bytes that the seams of `model` have sent to other ranks since `shard_sequence`; 0 where none are installed.

    What a rank keeps for itself is not counted, padding is.
    """
    sharding = _sharding_of(model)
    return 0 if sharding is None else sharding.sent


def own_tokens(model: nn.Module, x: Tensor) -> Tensor:
    """Tokens [..., T, S, D] of the blocks of `model` without those that pad this rank's share."""
    sharding = _sharding_of(model)
    return x if sharding is None else sharding.without_padding(x, -2)


def sum_over_sharing_ranks(model: nn.Module, x: Tensor) -> Tensor:
    """The sum of the `x` of the ranks that share the tokens of `model`, on all of them."""
    sharding = _sharding_of(model)
    return x if sharding is None else collectives.sum_over_ranks(x, sharding.group)


def _sharding_of(model: nn.Module) -> "SequenceSharding | None":
    ops = (module.op for module in model.modules() if isinstance(module, Seam))
    return next((op.sharding for op in ops if isinstance(op, SeamExchange)), None)


class SequenceSharding:
    """The split of tokens over a group: its size, this rank's place in it, and the whole lengths of the axes now split.

    full_lengths: by the dimension that seams give an axis. A split or a switch writes the length of the axis that it
    splits; the seam that makes the axis whole again reads it to cut the padding off.
    """

    def __init__(self, group: dist.ProcessGroup | None):
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.full_lengths: dict[int, int] = {}
        self.sent = 0  # bytes, to other ranks

    def __deepcopy__(self, memo: dict[int, object]) -> "SequenceSharding":
        return self  # a copy of the model lives in the same group

    def shard_length(self, length: int) -> int:
        """Places that each rank holds of an axis, padding included."""
        return -(-length // self.size)

    def split(self, whole: Tensor, dim: int) -> Tensor:
        """This rank's slice, padded with zeros."""
        length = whole.shape[dim]
        shard = self.shard_length(length)
        start, stop = (min(rank * shard, length) for rank in (self.rank, self.rank + 1))
        piece = whole.narrow(dim, start, stop - start)
        # A copy: a view would keep the whole alive.
        return (
            _padded(piece, dim, shard) if stop - start < shard else piece.clone(memory_format=torch.contiguous_format)
        )

    def without_padding(self, piece: Tensor, dim: int) -> Tensor:
        """This rank's tokens, which lie along `dim`, without the padding behind them; an axis that is whole stays."""
        length = self.full_lengths[TOKENS]
        shard = self.shard_length(length)
        if piece.shape[dim] != shard:
            return piece
        return piece.narrow(dim, 0, min(max(length - self.rank * shard, 0), shard))

    def gather(self, piece: Tensor, dim: int, length: int) -> Tensor:
        """The inverse of `split`, on every rank."""
        pieces = piece.new_empty(self.size, *piece.shape)
        self.all_gather(pieces.view(-1), piece.contiguous().view(-1))
        self.sent += (self.size - 1) * piece.nbytes
        return _joined(pieces, dim, length)

    def switch(self, x: Tensor, dim: int, swap_dim: int, length: int) -> Tensor:
        """Make `dim` whole, `length` places, and leave each rank its slice of `swap_dim`."""
        shard = self.shard_length(x.shape[swap_dim])
        # One parcel per rank, [ranks, ..., shard, ...]: all_to_all_single exchanges along the first axis only.
        parcels = _padded(x, swap_dim, self.size * shard).unflatten(swap_dim, (self.size, shard))
        parcels = parcels.movedim(swap_dim % x.ndim, 0).contiguous()
        pieces = torch.empty_like(parcels)
        self.all_to_all(pieces, parcels)
        self.sent += parcels.nbytes // self.size * (self.size - 1)
        return _joined(pieces, dim, length)

    def all_gather(self, pieces: Tensor, piece: Tensor) -> None:
        """Every rank's piece, one after the other; gloo takes two shapes only: flat, or along the first axis."""
        dist.all_gather_into_tensor(pieces, piece, group=self.group)

    def all_to_all(self, pieces: Tensor, parcels: Tensor) -> None:
        """Place i of `parcels` goes to rank i, place j of `pieces` comes from rank j."""
        dist.all_to_all_single(pieces, parcels, group=self.group)


def _padded(x: Tensor, dim: int, length: int) -> Tensor:
    if x.shape[dim] == length:
        return x
    after = x.ndim - 1 - dim % x.ndim
    return F.pad(x, (0, 0) * after + (0, length - x.shape[dim]))


def _joined(pieces: Tensor, dim: int, length: int) -> Tensor:
    """Every rank's piece of x, [ranks, *x.shape] -> one after the other along x's `dim`, without the padding."""
    dim %= pieces.ndim - 1
    return pieces.movedim(0, dim).flatten(dim, dim + 1).narrow(dim, 0, length)


class _TokensContext(FunctionCtx):
    sharding: SequenceSharding
    dim: int
    swap_dim: int
    length: int  # of the axis that the backward makes whole again
    full_lengths: dict[int, int]


@dataclass(frozen=True)
class SeamExchange:
    """The `op` of a seam. All seams of a model share one `sharding`; deep copies of the model share it too."""

    sharding: SequenceSharding
    function: type[Function]
    dim: int
    swap_dim: int | None

    def __call__(self, x: Tensor) -> Tensor:
        return self.function.apply(x, self.sharding, self.dim, self.swap_dim)


# Scaling of gradients. Every rank computes the whole loss L from the gathered output, so its gradient g there is whole
# as well. A rank's parameters between the seams get the part of dL that belongs to its tokens. These parts must be added
# up, but the engine averages over ranks. Hence `gather` multiplies by the number of ranks in the backward, and `split`
# divides by it again for what comes before the blocks, which every rank computes whole.
class SplitTokens(Function):
    """Whole -> this rank's slice; backward: gather, divided by the number of ranks."""

    @staticmethod
    def forward(ctx: _TokensContext, x: Tensor, sharding: SequenceSharding, dim: int, swap_dim: None) -> Tensor:
        ctx.sharding, ctx.dim, ctx.length = sharding, dim, x.shape[dim]
        sharding.full_lengths[dim] = x.shape[dim]
        return sharding.split(x, dim)

    @staticmethod
    def backward(ctx: _TokensContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.sharding.gather(grad, ctx.dim, ctx.length) / ctx.sharding.size, None, None, None


class GatherTokens(Function):
    """This rank's slice -> whole; backward: split, multiplied by the number of ranks."""

    @staticmethod
    def forward(ctx: _TokensContext, x: Tensor, sharding: SequenceSharding, dim: int, swap_dim: None) -> Tensor:
        ctx.sharding, ctx.dim, ctx.full_lengths = sharding, dim, dict(sharding.full_lengths)
        return sharding.gather(x, dim, sharding.full_lengths[dim])

    @staticmethod
    def backward(ctx: _TokensContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        # A backward reaches this before the blocks. Checkpointed blocks then run their forward again, and since the
        # first time the model may have seen a clip of another size: restore the lengths of this call.
        ctx.sharding.full_lengths = dict(ctx.full_lengths)
        return ctx.sharding.split(grad, ctx.dim) * ctx.sharding.size, None, None, None


class SwitchDims(Function):
    """All-to-all: makes `dim` whole and splits `swap_dim`; backward: the other way round.

    Neither direction scales: every element goes to exactly one rank.
    """

    @staticmethod
    def forward(ctx: _TokensContext, x: Tensor, sharding: SequenceSharding, dim: int, swap_dim: int) -> Tensor:
        ctx.sharding, ctx.dim, ctx.swap_dim, ctx.length = sharding, dim, swap_dim, x.shape[swap_dim]
        sharding.full_lengths[swap_dim] = x.shape[swap_dim]
        return sharding.switch(x, dim, swap_dim, sharding.full_lengths[dim])

    @staticmethod
    def backward(ctx: _TokensContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.sharding.switch(grad, ctx.swap_dim, ctx.dim, ctx.length), None, None, None


_FUNCTIONS: dict[str, type[Function]] = {"split": SplitTokens, "gather": GatherTokens, "switch": SwitchDims}
