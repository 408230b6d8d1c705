"""Constructor arguments that may come from the config.json beside released or exported weights."""

import inspect
from collections.abc import Mapping
from typing import Any

from opensora.errors import ConfigError

# How latents are scaled and clips are cut is the user's to change; what the network is made of is not.
_FREE = (
    *("scaling_factor", "latent_shift", "latent_scale", "freeze_spatial"),
    *("micro_batch_size", "micro_frame_size", "temporal_overlap"),
    *("use_tiling", "tile_sample_min_size", "tile_sample_min_size_t", "tile_overlap_factor"),
)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def fill_from_folder(cls: type, given: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`given` constructor arguments of `cls`, where a default is replaced by what `stored` says.

    An argument that differs from its default was meant; ConfigError when it contradicts `stored`. Keys of `stored`
    that `cls` does not take (loss, learning rate, bookkeeping of other programs) are passed over.
    """
    filled = dict(given)
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in given or name not in stored:
            continue
        meant = _plain(given[name]) != _plain(parameter.default)
        if not meant:
            filled[name] = stored[name]
        elif name not in _FREE and _plain(given[name]) != _plain(stored[name]):
            raise ConfigError(
                f"{cls.__name__}: {name}={given[name]!r}, but {where} holds weights for {stored[name]!r}; "
                f"leave {name} out or give another from_pretrained"
            )
    return filled
