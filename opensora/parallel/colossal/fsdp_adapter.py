"""torch's FSDP (version 1) as ColossalAI's Booster applies it. No other file uses its private attributes.

FSDP shards the parameters of a unit as one flat tensor, so a rank's piece of one parameter may be any range of it.
The classes are made inside functions because colossalai is optional.
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
    """(booster, wrapped model); `units` are gathered one at a time, the rest stays gathered for the whole step."""
    from colossalai.booster import Booster
    from torch.distributed.fsdp.wrap import CustomPolicy

    unit_ids = {id(unit) for unit in units}
    plugin = _plugin_class()(auto_wrap_policy=CustomPolicy(lambda module: id(module) in unit_ids), **options)
    plugin.fsdp_kwargs |= {
        "device_id": device,
        "use_orig_params": True,
        # frozen parameters stay whole: they have no gradient, and are small in every model that trains here
        "ignored_states": [each for each in model.parameters() if not each.requires_grad],
    }
    booster = Booster(plugin=plugin)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(FSDP|NO_SHARD).*"
        )  # colossalai does not support FSDP2, which they recommend
        wrapped, *_ = booster.boost(model)
    return booster, wrapped


@functools.cache
def _plugin_class() -> type:
    from colossalai.booster.plugin import TorchFSDPPlugin
    from colossalai.booster.plugin.torch_fsdp_plugin import TorchFSDPModel

    class FsdpPlugin(TorchFSDPPlugin):
        """Shim S4: any device; the optimizer is made afterwards, from parameters that are sharded already."""

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


class FlatParameters:
    """The ranges of parameters that this rank holds, and the parameters that this rank's samples used."""

    def __init__(self, wrapped: nn.Module):
        self._handles = list(_handles(wrapped))
        self._used: set[int] = set()
        for unit, handle in self._handles:
            unit._fsdp_wrapped_module.register_forward_pre_hook(functools.partial(self._watch, handle))

    def ranges(self) -> dict[int, Range]:
        """id of a parameter -> the range of its flat tensor that this rank holds."""
        ranges = {}
        for _, handle in self._handles:
            flat = handle.flat_param
            for parameter, info in zip(flat._params, flat._shard_param_infos, strict=True):
                bounds = (info.intra_param_start_idx, info.intra_param_end_idx + 1) if info.in_shard else (0, 0)
                ranges[id(parameter)] = bounds
        return ranges

    def drop_gathered(self) -> None:
        """Drop gathered parameters that a forward without a backward left behind: they are out of date."""
        for _, handle in self._handles:
            if hasattr(handle.flat_param, "_local_shard"):  # set by the first forward
                handle.reshard(True)

    def clear_used(self) -> None:
        """Forget which parameters this rank's samples touched."""
        self._used.clear()

    def used_anywhere(self, parameters: Sequence[nn.Parameter]) -> list[bool]:
        """For each parameter, if any rank's samples used it since the last call; all ranks call."""
        used = torch.tensor([int(id(each) in self._used) for each in parameters])
        self._used.clear()
        return [bool(count) for count in collectives.sum_over_ranks(used)]

    def _watch(self, handle: Any, module: nn.Module, inputs: Any) -> None:
        """The gradient of a unit is one tensor, zero where nothing was used, so watch the gathered parameters, its views."""
        if not torch.is_grad_enabled():
            return
        flat = handle.flat_param
        for parameter, (name, owner, _) in zip(flat._params, flat._param_infos):
            view: Tensor = getattr(owner, name)
            if view.requires_grad:
                view.register_hook(functools.partial(self._mark_used, id(parameter)))

    def _mark_used(self, parameter_id: int, gradient: Tensor) -> None:
        self._used.add(parameter_id)


def _handles(wrapped: nn.Module) -> Iterator[tuple[Any, Any]]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    for unit in wrapped.modules():
        if isinstance(unit, FullyShardedDataParallel) and unit._handle is not None:
            yield unit, unit._handle
