"""Where released or exported weights lie, and constructor arguments that come from the config.json beside them."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opensora.errors import ConfigError, WeightsError
from opensora.models.weights import read_config

# How latents are scaled and clips are cut is the user's to change; what the network is made of is not.
_FREE = (
    *("scaling_factor", "latent_shift", "latent_scale", "freeze_spatial"),
    *("micro_batch_size", "micro_frame_size", "temporal_overlap"),
    *("use_tiling", "tile_sample_min_size", "tile_sample_min_size_t", "tile_overlap_factor"),
)


def is_hub_id(source: str) -> bool:
    """OWNER/NAME, unless there is such a folder or file."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None and not Path(source).exists()


def stored_config(source: str, subfolder: str | None = None) -> dict[str, Any]:
    """config.json of a folder. {} for a hub id: the arguments say its layout, so that nothing is asked to plan a run."""
    return {} if is_hub_id(source) else read_config(Path(source, subfolder or ""))


def fetched(source: str, subfolder: str | None = None, kinds: Sequence[str] = ("*.safetensors",)) -> Path:
    """The folder or file that `source` names; for a hub id the folder in the local cache that it is fetched to.

    subfolder: where in it; only that is fetched. kinds: of the files with weights.
    """
    if not is_hub_id(source):
        return Path(source, subfolder or "")
    from huggingface_hub import snapshot_download

    wanted = [f"{subfolder}/{kind}" if subfolder else kind for kind in ("*.json", *kinds)]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted), subfolder or "")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise WeightsError(
            f"weights: {source}: neither a folder nor fetched from the hub ({reason}); correct the path, or fetch it "
            f"once with `hf download {source}`"
        ) from error


def pieces_of(where: str, micro_batch_size: int | None) -> int | None:
    """How many to code at a time, None = all; ConfigError for less than one."""
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ConfigError(f"{where}: micro_batch_size: {micro_batch_size}; allowed: 1 or more, or None; change it")
    return micro_batch_size


def plain(value: Any) -> Any:
    """Lists and tuples alike, as a config may hold either."""
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
        meant = plain(given[name]) != plain(parameter.default)
        if not meant:
            filled[name] = stored[name]
        elif name not in _FREE and plain(given[name]) != plain(stored[name]):
            raise ConfigError(
                f"{cls.__name__}: {name}={given[name]!r}, but {where} holds weights for {stored[name]!r}; "
                f"leave {name} out or give another from_pretrained"
            )
    return filled
