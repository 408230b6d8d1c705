"""A frozen network, such as T5-XXL, sharded over the ranks: torch's FSDP2 gathers a block while it runs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from opensora.parallel import collectives

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard_frozen(model: "PreTrainedModel", group: dist.ProcessGroup | None, device: torch.device) -> "PreTrainedModel":
    """Leave each rank its shard of every block and of the word embedding of `model`, which is returned.

    model: one of transformers, on the CPU or on `device`; positions, final norms and the like stay whole.
    device: where the rank will compute. Each block moves there as it is sharded, the rest with `model.to(device)`.
    Blocks are the elements of the outermost ModuleLists. From now on the ranks of `group` (None = all) must call the
    model equally often, each with inputs of its own. Between calls a rank holds 1/N of what is sharded, during a call one
    block more. The model may be cast until its first call. Numbers do not change; nothing is done in a group of one.
    Raises ValueError for parameters that train.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("shard_frozen: some parameters train; only frozen networks can be sharded this way")
    if collectives.world_size(group) == 1:
        return model
    mesh = DeviceMesh.from_group(group or dist.distributed_c10d._get_default_group(), device.type)
    for unit in list(_units(model, model.get_input_embeddings().weight)):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    return model


def _units(model: nn.Module, words: object) -> Iterator[nn.Module]:
    """The modules that are gathered one at a time, each once."""
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    for path in outermost:
        yield from model.get_submodule(path)  # type: ignore[misc]
    for module in model.modules():
        # Other embeddings are small, and some models read their shape from outside.
        if isinstance(module, nn.Embedding) and module.weight is words:
            yield module
