"""torch's FSDP as ColossalAI's Booster applies it, and the one place that knows its private attributes.

FSDP cuts the parameters of a unit as one flat tensor, so a rank's piece of one parameter is any range of it.
The classes are made inside functions because colossalai is optional.
Written against colossalai 0.5.0 and torch 2.14 (FSDP version 1, which is what colossalai has).
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opensora.parallel import collectives
from opensora.parallel.reshard import Range
from opensora.registry import PLATFORMS, names


def boost(model: nn.Module, units: Sequence[nn.Module], device: torch.device, **options: Any) -> tuple[Any, Any]:
    """(booster, wrapped model); `units` are gathered one at a time, what is outside of them stays for the whole step."""
    from colossalai.booster import Booster
    from torch.distributed.fsdp.wrap import CustomPolicy

    chosen = {id(unit) for unit in units}
    plugin = _plugin_class()(auto_wrap_policy=CustomPolicy(lambda module: id(module) in chosen), **options)
    plugin.fsdp_kwargs |= {
        "device_id": device,
        "use_orig_params": True,
        # frozen ones stay whole: no gradient is made for them, and they are small in everything that trains here
        "ignored_states": [each for each in model.parameters() if not each.requires_grad],
    }
    booster = Booster(plugin=plugin)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(FSDP|NO_SHARD).*")  # its successor has no place in colossalai yet
        wrapped, *_ = booster.boost(model)
    return booster, wrapped


@functools.cache
def _plugin_class() -> type:
    from colossalai.booster.plugin import TorchFSDPPlugin
    from colossalai.booster.plugin.torch_fsdp_plugin import TorchFSDPModel

    class FsdpPlugin(TorchFSDPPlugin):
        """Shim S4: any device; the optimizer is made afterwards, of parameters that are pieces already."""

        def supported_devices(self) -> list[str]:
            return names(PLATFORMS)

        def configure(
            self,
            model: nn.Module,
            optimizer: Any = None,
            criterion: Any = None,
            dataloader: Any = None,
            lr_scheduler: Any = None,
        ) -> tuple[Any, Any, Any, Any, Any]:
            options = {key: value for key, value in self.fsdp_kwargs.items() if value is not None}
            return TorchFSDPModel(model, **options), optimizer, criterion, dataloader, lr_scheduler

    return FsdpPlugin


class FsdpPieces:
    """Which range of which parameter this rank holds, and which parameters this rank's samples touched."""

    def __init__(self, wrapped: nn.Module):
        self._handles = list(_handles(wrapped))
        self._used: set[int] = set()
        for unit, handle in self._handles:
            unit._fsdp_wrapped_module.register_forward_pre_hook(functools.partial(self._watch, handle))

    def ranges(self) -> dict[int, Range]:
        """By id of the parameter: the range of its flat tensor that this rank holds."""
        found = {}
        for _, handle in self._handles:
            flat = handle.flat_param
            for parameter, info in zip(flat._params, flat._shard_param_infos, strict=True):
                held = (info.intra_param_start_idx, info.intra_param_end_idx + 1) if info.in_shard else (0, 0)
                found[id(parameter)] = held
        return found

    def drop_gathered(self) -> None:
        """Forget whole copies that a forward without a backward left behind: their pieces have changed."""
        for _, handle in self._handles:
            if hasattr(handle.flat_param, "_local_shard"):  # set by the first forward
                handle.reshard(True)

    def used_anywhere(self, parameters: Sequence[nn.Parameter]) -> list[bool]:
        """Whether any rank's samples touched each parameter since the last call; all ranks call."""
        mine = torch.tensor([int(id(each) in self._used) for each in parameters])
        self._used.clear()
        return [bool(count) for count in collectives.sum_over_ranks(mine)]

    def _watch(self, handle: Any, module: nn.Module, inputs: Any) -> None:
        """A gradient of a unit is one tensor, zero where nothing was touched: ask the whole parameters, which are views."""
        if not torch.is_grad_enabled():
            return
        flat = handle.flat_param
        for parameter, (name, owner, _) in zip(flat._params, flat._param_infos):
            view: Tensor = getattr(owner, name)
            if view.requires_grad:
                view.register_hook(functools.partial(self._mark, id(parameter)))

    def _mark(self, which: int, gradient: Tensor) -> None:
        self._used.add(which)


def _handles(wrapped: nn.Module) -> Iterator[tuple[Any, Any]]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    for unit in wrapped.modules():
        if isinstance(unit, FullyShardedDataParallel) and unit._handle is not None:
            yield unit, unit._handle
