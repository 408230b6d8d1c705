"""Clip lengths: an autoencoder holds those that it decodes whole, and the others are refused with the nearest ones."""

from typing import Any

import pytest
import torch

from opensora.errors import ConfigError
from opensora.models.build import assemble
from opensora.models.frame_counts import nearest_frame_counts, require_frame_counts
from opensora.models.shape_checks import ShapeError
from opensora.registry import VAES, build
from tests.support.small_models import SMALL_VAES, small

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, config) for name, config in SMALL_VAES.items()),
    ("OpenSoraVAE_V1_3", {**SMALL_VAES["OpenSoraVAE_V1_3"], "micro_frame_size": 5, "micro_batch_size": 1}),
    (
        "OpenSoraVAE_V1_3",
        {**SMALL_VAES["OpenSoraVAE_V1_3"], "micro_frame_size": 5, "micro_batch_size": 1, "temporal_overlap": True},
    ),
]


@pytest.mark.parametrize(("name", "config"), VARIANTS)
def test_frames_that_are_held_come_back(name: str, config: dict[str, Any]) -> None:
    """On the meta device: a length is held exactly when all its frames are decoded again."""
    with torch.device("meta"):
        vae = build(VAES, {"type": name, **config})
        for frames in range(1, 12):
            clip = torch.empty(1, vae.in_channels, frames, 16, 16)
            try:
                restored = vae.decode(vae.encode(clip), frames).shape[2] == frames
            except ShapeError:
                restored = False
            assert vae.holds_frames(frames) == restored, frames


def causal() -> Any:
    with torch.device("meta"):
        return build(VAES, {"type": "CausalVAEModel", **SMALL_VAES["CausalVAEModel"]})


def test_nearest_lengths() -> None:
    assert nearest_frame_counts(causal(), 16) == [13, 17]
    assert nearest_frame_counts(causal(), 2) == [1, 5]


def test_every_wrong_length_is_named_with_the_nearest() -> None:
    lengths = [("key 'bucket_config.144p'", 17), ("key 'bucket_config.144p'", 16), ("key 'bucket_config.240p'", 30)]
    with pytest.raises(ConfigError) as error:
        require_frame_counts(causal(), lengths, "here.py")
    assert str(error.value) == (
        "here.py: key 'bucket_config.144p': found 16; allowed: 13 or 17, key 'bucket_config.240p': found 30; allowed: "
        "29 or 33 frames, which CausalVAEModel holds without loss of the last ones; set them"
    )
    require_frame_counts(causal(), lengths[:1], "here.py")


def test_parts_are_not_assembled_for_a_length_that_loses_frames() -> None:
    parts = ({"type": "CausalVAEModel", **SMALL_VAES["CausalVAEModel"]}, {"type": "minilm"})
    sizes: dict[str, Any] = {"image_size": (16, 16), "weights": False}
    with pytest.raises(ConfigError, match=r"'num_frames': found 16; allowed: 13 or 17 frames"):
        assemble(small("STDiT"), *parts, num_frames=16, **sizes)
