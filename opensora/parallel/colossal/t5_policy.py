"""Tensor parallelism of T5's encoder for ranks that encode the same captions, by ColossalAI's ShardFormer.

ColossalAI's policy is wrong for the gated MLP of T5 v1.1 (colossalai 0.5.0): the name of one layer ends with a blank, so
that layer stays whole, and the next two are sharded along the wrong axes. The policy here corrects that.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from opensora.errors import ConfigError
from opensora.parallel import collectives
from opensora.parallel.colossal.accelerator import set_accelerator

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard_t5(model: "PreTrainedModel", group: dist.ProcessGroup | None, device: torch.device) -> nn.Module:
    """`model` (transformers' T5EncoderModel, on the CPU) with only this rank's heads, hidden units and words.

    device: where the rank will compute.
    The ranks of `group` (None = all) must call the result together, with the same tokens. They get the numbers of the
    whole model up to rounding, because a block sums the ranks' results. Nothing changes in a group of one.
    Raises ConfigError for another model, or one whose heads or hidden units the group does not divide.
    """
    size = collectives.world_size(group)
    if size == 1:
        return model
    if type(model).__name__ != "T5EncoderModel":
        raise ConfigError(
            f"text_encoder: {type(model).__name__} cannot be cut by heads; allowed: t5; use text_encoder_parallel='shard'"
        )
    for unit, number in {"heads": model.config.num_heads, "hidden units": model.config.d_ff}.items():
        if number % size:
            raise ConfigError(
                f"text_encoder: {number} {unit} of T5 on groups of {size} ranks; allowed: a divisor of {number}; change "
                "sp_size, or use text_encoder_parallel='shard'"
            )
    set_accelerator(device)
    from colossalai.shardformer import ShardConfig, ShardFormer

    shard_config = ShardConfig(
        tensor_parallel_process_group=group if group is not None else dist.group.WORLD,
        enable_tensor_parallelism=True,
        make_vocab_size_divisible_by=1,
    )
    sharded, _ = ShardFormer(shard_config).optimize(model, _policy())
    return sharded.eval().requires_grad_(False)


def _policy() -> Any:
    from colossalai.shardformer.layer import Linear1D_Col, Linear1D_Row
    from colossalai.shardformer.policies.base_policy import SubModuleReplacementDescription
    from colossalai.shardformer.policies.t5 import T5EncoderPolicy
    from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

    class GatedMlpPolicy(T5EncoderPolicy):
        """Shim S6: ColossalAI's policy with the gated MLP corrected."""

        def module_policy(self) -> dict:
            policy = super().module_policy()
            gated = policy[T5DenseGatedActDense]
            kinds = {"wi_0": Linear1D_Col, "wi_1": Linear1D_Col, "wo": Linear1D_Row}
            gated.sub_module_replacement = [
                *[SubModuleReplacementDescription(suffix=name, target_module=kind) for name, kind in kinds.items()],
                *[each for each in gated.sub_module_replacement if each.suffix == "dropout"],
            ]
            return policy

    return GatedMlpPolicy()
