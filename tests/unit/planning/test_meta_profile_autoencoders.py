"""Autoencoders call torch's attention themselves, in the forward and, under activation checkpointing, once more."""

import pytest
import torch

from opensora.planning.meta_profile import profile_step
from opensora.registry import VAES, build, names
from tests.support.small_models import SMALL_VAES


@pytest.mark.parametrize("name", names(VAES))
def test_autoencoders_are_rehearsed_with_and_without_checkpointing(name: str) -> None:
    """`opensora check` states both, whichever the config sets."""
    profiles = []
    for checkpointed in (False, True):
        with torch.device("meta"):
            model = build(VAES, {"type": name, **SMALL_VAES[name]})
            video = torch.empty(1, 3, model.compression[0] + 1, 16, 24)
            profiles.append(
                profile_step(model, lambda model, video=video: model(video, None), checkpointed=checkpointed)
            )
    plain, spared = profiles
    assert spared.saved < plain.saved
    assert spared.forward_flops == plain.forward_flops > 0
    assert spared.backward_flops > plain.backward_flops
