"""The codec of a sequence group: its first rank encodes, the others receive."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from opensora.models.codec import Codec, TextEncoder
from opensora.parallel.group_leader import run_on_leader
from opensora.parallel.world import World
from opensora.types import Condition


class GroupCodec(Codec):
    """All ranks of the group call it alike. Encoding once also makes sure that all see the same bits, whatever kernels
    their devices choose. Decoding is each rank's own."""

    def __init__(self, vae: nn.Module, text_encoder: TextEncoder, world: World, dtype: torch.dtype):
        super().__init__(vae, text_encoder, world.device, dtype)
        self.world = world

    def encode_video(self, video_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        return run_on_leader(lambda: super(GroupCodec, self).encode_video(video_BCTHW, rngs), self.world)

    def encode_text(self, captions: Sequence[str]) -> Condition:
        return run_on_leader(lambda: super(GroupCodec, self).encode_text(captions), self.world)
