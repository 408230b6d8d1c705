"""Which denoisers can be told that some frames of a clip are given."""

import inspect
from collections.abc import Mapping
from typing import Any

from opensora.errors import ConfigError
from opensora.registry import MODELS, constructor


def require_frame_masks(model: Mapping[str, Any], key: str) -> None:
    """ConfigError unless the model of this config takes a mask with an entry per latent frame; builds nothing.

    key: what in the config asks for it, with its place, for the message.
    """
    create = constructor(MODELS, model["type"])
    if not getattr(getattr(create, "__wrapped_class__", create), "takes_x_mask", False):
        raise ConfigError(
            f"{key}: {model['type']} cannot be told which frames are given; allowed: a model with frame masks, such as "
            "STDiT; remove the key or change the model"
        )
    patch = model.get("patch_size", inspect.signature(create).parameters["patch_size"].default)
    if patch[0] != 1:
        raise ConfigError(
            f"{key}: model.patch_size {tuple(patch)} joins {patch[0]} latent frames in a token; allowed: 1, so that each "
            "can be given or not; change one of the two"
        )
