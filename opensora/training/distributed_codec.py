"""The codec of a training run: one rank of a sequence group encodes for the group, and ranks may share the text encoder."""

from functools import partial
from typing import Any, Literal

import torch

from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder
from opensora.models.codec import Codec
from opensora.parallel import collectives
from opensora.parallel.colossal.t5_policy import shard_t5
from opensora.parallel.frozen_shard import shard_frozen
from opensora.parallel.group_leader import run_on_leader
from opensora.parallel.world import World


def distributed_codec(
    vae: Autoencoder,
    text_encoder: Any,
    world: World,
    dtype: torch.dtype,
    text_parallel: Literal["shard", "tensor"] | None,
    where: str,
) -> Codec:
    """Build the codec; all ranks call it, and all call its methods equally often.

    text_parallel: None puts a whole text encoder on each rank, "shard" cuts its blocks over all ranks, "tensor" cuts T5's
    heads over the ranks of a sequence group. Raises ConfigError for an encoder that is no network of transformers, or that
    cannot be cut so.
    """
    # Encoding once also gives all ranks of the group the same bits, whatever kernels their devices choose.
    on_leader = partial(run_on_leader, world=world)
    if text_parallel is None:
        return Codec(vae, text_encoder, world.device, dtype, run_on_leader=on_leader)
    partners: collectives.Group = None if text_parallel == "shard" else world.sequence_group
    model = getattr(text_encoder, "model", None)
    if model is None or not hasattr(model, "get_input_embeddings"):
        raise ConfigError(
            f"{where}: key 'text_encoder_parallel': found {text_parallel!r} for {type(text_encoder).__name__}, which holds "
            "no network; allowed: None for it; remove the key"
        )
    if text_parallel == "tensor" and world.sequence_size == 1:
        raise ConfigError(
            f"{where}: key 'text_encoder_parallel': found 'tensor' with sp_size=1; allowed: with sequence groups, whose "
            "ranks have the same captions; set 'shard', or sp_size above 1"
        )
    text_encoder.to("cpu", dtype)  # cut before it goes to the device, where the whole may not fit
    if text_parallel == "shard":
        shard_frozen(model, None, world.device)
    else:
        text_encoder.model = shard_t5(model, partners, world.device)

    def largest(count: int) -> int:
        return max(collectives.gather_objects(count, partners))

    return Codec(vae, text_encoder, world.device, dtype, run_on_leader=on_leader, max_over_text_ranks=largest)
