"""A text encoder that the ranks hold together, so that a large one fits beside the model."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from opensora.errors import ConfigError
from opensora.models.codec import Codec
from opensora.parallel import collectives
from opensora.parallel.colossal.t5_policy import shard_t5
from opensora.parallel.frozen_shard import shard_frozen
from opensora.parallel.world import World
from opensora.training.group_codec import GroupCodec
from opensora.types import Condition


class SharedTextCodec(GroupCodec):
    """Every rank encodes with every other, each its own captions; as often as the rank that misses most in its cache.

    All ranks call `encode_text` equally often. Videos are encoded as in GroupCodec.
    """

    def __init__(
        self, vae: Any, text_encoder: Any, world: World, dtype: torch.dtype, how: Literal["shard", "tensor"], where: str
    ):
        """how: "shard" cuts blocks over all ranks, "tensor" cuts T5's heads over the ranks of a sequence group.

        Raises ConfigError when the encoder is no network of transformers, or cannot be cut so.
        """
        self._partners: collectives.Group = None if how == "shard" else world.sequence_group
        model = getattr(text_encoder, "model", None)
        if model is None or not hasattr(model, "get_input_embeddings"):
            raise ConfigError(
                f"{where}: key 'text_encoder_parallel': found {how!r} for {type(text_encoder).__name__}, which holds no "
                "network; allowed: None for it; remove the key"
            )
        if how == "tensor" and world.sequence_size == 1:
            raise ConfigError(
                f"{where}: key 'text_encoder_parallel': found 'tensor' with sp_size=1; allowed: with sequence groups, whose "
                "ranks have the same captions; set 'shard', or sp_size above 1"
            )
        text_encoder.to("cpu", dtype)  # cut before it goes to the device, where the whole may not fit
        if how == "shard":
            shard_frozen(model)
        else:
            text_encoder.model = shard_t5(model, self._partners, world.device)
        super().__init__(vae, text_encoder, world, dtype)

    def encode_text(self, captions: Sequence[str]) -> Condition:
        return Codec.encode_text(self, captions)

    def encode_captions(self, captions: Sequence[str]) -> list[Condition]:
        most = max(collectives.gather_objects(len(captions), self._partners))
        encoded = super().encode_captions(captions)
        for _ in range(most - len(captions)):
            self.text_encoder.encode([""])  # the others need this rank's part
        return encoded
