"""A frozen network, such as T5-XXL, cut over the ranks: a block is gathered while it runs and dropped afterwards."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from opensora.parallel import collectives


def shard_frozen(model: Any, group: dist.ProcessGroup | None = None) -> Any:
    """Leave each rank its part of every block and of the word embedding of `model`, which is returned.

    model: one of transformers; positions, final norms and the like stay whole.
    Blocks are the elements of its outermost ModuleLists. From now on the ranks of `group` (None = all) must call the
    model equally often, each with inputs of its own. Between calls a rank holds 1/N of what is cut, during a call one
    block more. It may still be moved and cast. Numbers do not change; nothing is done in a group of one.
    ValueError for parameters that train, or that differ in type within a block.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("shard_frozen: some parameters train; only frozen networks can be cut this way")
    if collectives.world_size(group) == 1:
        return model
    units: dict[tuple[int, ...], _Unit] = {}
    for module in _modules_to_cut(model, model.get_input_embeddings().weight):
        parameters = list(module.parameters())
        key = tuple(id(each) for each in parameters)
        if key not in units:  # else a second module with the very same parameters, as tied embeddings are
            units[key] = _Unit(module, parameters, group)
        module.register_forward_pre_hook(units[key].gather)
        module.register_forward_hook(units[key].drop, always_call=True)
    return model


def _modules_to_cut(model: nn.Module, words: nn.Parameter) -> Iterator[nn.Module]:
    if isinstance(model, nn.ModuleList):
        yield from model
    elif isinstance(model, nn.Embedding):
        if model.weight is words:  # others are small, and some models look at their shape from outside
            yield model
    else:
        for child in model.children():
            yield from _modules_to_cut(child, words)


class _Unit:
    """The parameters that are gathered together: this rank's part of them is a buffer of `module`."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter], group: dist.ProcessGroup | None):
        if len({parameter.dtype for parameter in parameters}) > 1:
            raise ValueError(f"shard_frozen: {type(module).__name__} has parameters of several types; cast it first")
        self.module, self.parameters, self.group = module, parameters, group
        self.shapes = [parameter.shape for parameter in parameters]
        whole = torch.cat([parameter.detach().flatten() for parameter in parameters])
        ranks = collectives.world_size(group)
        length = -(-whole.numel() // ranks)
        start = dist.get_rank(group) * length
        piece = whole[start : start + length]
        padded = piece.new_zeros(length)
        padded[: piece.numel()] = piece
        module.register_buffer("own_piece", padded, persistent=False)  # a buffer moves and is cast with the module
        self.drop()

    def gather(self, *_: Any) -> None:
        piece: Tensor = self.module.own_piece  # type: ignore[assignment]
        whole = piece.new_empty(piece.numel() * collectives.world_size(self.group))
        dist.all_gather_into_tensor(whole, piece, group=self.group)
        start = 0
        for parameter, shape in zip(self.parameters, self.shapes, strict=True):
            parameter.data = whole[start : start + shape.numel()].view(shape)
            start += shape.numel()

    def drop(self, *_: Any) -> None:
        for parameter in self.parameters:
            parameter.data = parameter.data.new_empty(0)
