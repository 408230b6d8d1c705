"""Folders and hub ids of released or exported weights, and constructor arguments from their config.json."""

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opensora.errors import ConfigError, WeightsError
from opensora.files import expand_home
from opensora.models.weights import read_config, require_kind
from opensora.registry import VAES

# Arguments that may differ from the stored config: scaling of latents and splitting of clips. The others define layers.
_CHANGEABLE = (
    *("scaling_factor", "latent_shift", "latent_scale", "freeze_spatial"),
    *("micro_batch_size", "micro_frame_size", "temporal_overlap"),
    *("use_tiling", "tile_sample_min_size", "tile_sample_min_size_t", "tile_overlap_factor"),
)


def is_hub_id(source: str) -> bool:
    """True for OWNER/NAME, unless a folder or file has that path."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) is not None and not Path(source).exists()


def read_stored_config(source: str, subfolder: str | None = None) -> dict[str, Any]:
    """config.json of a folder. {} for a hub id: its layout comes from the arguments, so that planning stays offline."""
    if is_hub_id(source):
        return {}
    folder = Path(expand_home(source), subfolder or "")
    require_kind(folder, VAES, "key 'vae.from_pretrained'")
    return read_config(folder)


def fetch_folder(source: str, subfolder: str | None = None, kinds: Sequence[str] = ("*.safetensors",)) -> Path:
    """The folder or file `source`; a hub id is fetched into the local cache first. Raises WeightsError.

    subfolder: the only part that is used and fetched. kinds: patterns of the weight files.
    """
    if not is_hub_id(source):
        return Path(expand_home(source), subfolder or "")
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


def check_micro_batch_size(where: str, micro_batch_size: int | None) -> int | None:
    """`micro_batch_size`: None = all. Raises ConfigError for less than 1."""
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ConfigError(f"{where}: micro_batch_size: {micro_batch_size}; allowed: 1 or more, or None; change it")
    return micro_batch_size


def as_list(value: object) -> object:
    """Tuples as lists: a config may hold either."""
    return list(value) if isinstance(value, list | tuple) else value


def merge_stored_config(
    cls: type, arguments: Mapping[str, Any], stored: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Constructor `arguments` of `cls`, with defaults replaced by the values of the `stored` config.

    An argument that differs from its default is intended: ConfigError when it contradicts `stored`. Keys of `stored`
    that `cls` does not take (loss, learning rate, other programs' bookkeeping) are ignored.
    """
    merged = dict(arguments)
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in arguments or name not in stored:
            continue
        if as_list(arguments[name]) == as_list(parameter.default):
            merged[name] = stored[name]
        elif name not in _CHANGEABLE and as_list(arguments[name]) != as_list(stored[name]):
            raise ConfigError(
                f"{cls.__name__}: {name}={arguments[name]!r}, but {where} holds weights for {stored[name]!r}; "
                f"leave {name} out or give another from_pretrained"
            )
    return merged
