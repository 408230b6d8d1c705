"""How denoisers are told that some frames of a clip are given.

By masks: given frames stand clean among the noised ones, and the model gets a mask (Open-Sora 1.1, 1.2).
By conditions: all frames are noised, and the model gets the given latents beside them (Open-Sora 1.3).
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from opensora.errors import ConfigError
from opensora.registry import MODELS, constructor

ConditioningMode = Literal["masks", "conditions"]


def conditioning_mode(model: Mapping[str, Any], key: str) -> ConditioningMode:
    """How the model of this config is told; builds nothing. ConfigError when it cannot be told.

    key: what in the config asks for it, with its place, for the message.
    """
    create = constructor(MODELS, model["type"])
    parameters = inspect.signature(create).parameters
    conditions = "conditioned" in parameters and model.get("conditioned", parameters["conditioned"].default)
    if not conditions and not getattr(getattr(create, "__wrapped_class__", create), "takes_x_mask", False):
        raise ConfigError(
            f"{key}: {model['type']} cannot be told which frames are given; allowed: a model with frame masks, such as "
            "STDiT; remove the key or change the model"
        )
    patch = model.get("patch_size", parameters["patch_size"].default)
    if patch[0] != 1:
        raise ConfigError(
            f"{key}: model.patch_size {tuple(patch)} joins {patch[0]} latent frames in a token; allowed: 1, so that each "
            "can be given or not; change one of the two"
        )
    return "conditions" if conditions else "masks"
