"""Tensor parallelism through ColossalAI's booster: ShardFormer installs the layers of tensor_parallel.py.

Its policy goes by the names of a module's linear layers, so it serves every denoiser.
The classes are made inside functions because colossalai is optional.
"""

from datetime import timedelta
from typing import Any

from torch import nn
from torch.optim import Optimizer

from opensora.parallel.tensor_parallel import (
    COLUMN_PARALLEL,
    MLP,
    ROW_PARALLEL,
    ColumnParallelLinear,
    RowParallelLinear,
    check_heads,
    sharded_linears,
)
from opensora.parallel.world import set_timeout
from opensora.registry import PLATFORMS, names


def boost(
    model: nn.Module, tensor_size: int, sequence_size: int, timeout: timedelta | None
) -> tuple[Any, nn.Module, Any]:
    """(booster, wrapped model, ColossalAI's plugin with its process groups `tp_group` and `mixed_dp_group`).

    timeout: of the groups' collectives; None: the backend's.
    Raises ConfigError when the ranks cannot share the model's heads.
    """
    from colossalai.booster import Booster
    from colossalai.booster.plugin import HybridParallelPlugin
    from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule

    class TensorPlugin(HybridParallelPlugin):
        """Shim S5: shards the model only. The engine averages the gradients, because it knows what is sharded."""

        def __del__(self) -> None: ...  # the process groups end with the world

        def supported_devices(self) -> list[str]:
            return names(PLATFORMS)

        def configure(
            self,
            model: nn.Module,
            optimizer: Optimizer | None = None,
            criterion: object = None,
            dataloader: object = None,
            lr_scheduler: object = None,
        ) -> tuple[nn.Module, Optimizer | None, object, object, object]:
            groups = (self.mixed_dp_group, self.tp_group, self.sp_group)
            wrapped = HybridParallelModule(
                model, self.precision, self.shard_config, *groups, False, {}, self.custom_policy
            )
            return wrapped, optimizer, criterion, dataloader, lr_scheduler

    check_heads(model, tensor_size)
    plugin = TensorPlugin(
        tp_size=tensor_size,
        pp_size=1,
        sp_size=sequence_size,
        enable_sequence_parallelism=sequence_size > 1,  # for its mesh only: the model's seams exchange the tokens
        precision="fp32",
        zero_stage=0,
        custom_policy=_policy(tensor_size),
    )
    if timeout is not None:  # ColossalAI's mesh has no argument for it
        set_timeout(timeout, plugin.tp_group)
        set_timeout(timeout, plugin.mixed_dp_group)
    booster = Booster(plugin=plugin)
    wrapped, *_ = booster.boost(model)
    return booster, wrapped, plugin


def _policy(size: int) -> Any:
    from colossalai.shardformer.policies.base_policy import (
        ModulePolicyDescription,
        Policy,
        SubModuleReplacementDescription,
    )

    class BlockPolicy(Policy):
        def config_sanity_check(self) -> None: ...

        def preprocess(self) -> nn.Module:
            return self.model

        def postprocess(self) -> nn.Module:
            return self.model

        def module_policy(self) -> dict:
            descriptions: dict[type, Any] = {}
            for module, linears in sharded_linears(self.model, size):
                descriptions[type(module)] = ModulePolicyDescription(
                    attribute_replacement={} if linears == MLP else {"num_heads": module.num_heads // size},
                    sub_module_replacement=[
                        SubModuleReplacementDescription(name, RowParallelLinear)
                        if name in ROW_PARALLEL
                        else SubModuleReplacementDescription(
                            name, ColumnParallelLinear, {"parts": COLUMN_PARALLEL[name]}
                        )
                        for name in linears
                    ],
                )
            return descriptions

    return BlockPolicy()
