"""Weights in and out of modules: load strictly with a readable report, write safetensors and config.json."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import Registry
from torch import Tensor, nn

from opensora import files
from opensora.errors import ConfigError, WeightsError
from opensora.models.read_weights import (
    WEIGHTS_FILE,
    bare_names,
    describe_names,
    find_weights,
    first_few,
    read_weights,
    shared_prefixes,
    without_prefix,
)
from opensora.registry import DISCRIMINATORS, MODELS, VAES
from opensora.registry import names as registered_names

CONFIG_FILE = "config.json"
# The registry of a component: what it is in words, and the key that takes weights of it.
_KINDS = {
    "model": (MODELS, "a denoiser", "load or model.from_pretrained"),
    "vae": (VAES, "an autoencoder", "vae.from_pretrained"),
    "discriminator": (DISCRIMINATORS, "a discriminator", "discriminator.from_pretrained"),
}


def load_weights(module: nn.Module, path: str | Path, ignore: Sequence[str] = ()) -> None:
    """Load the weights of `path` into `module`; they must fit exactly. Raises WeightsError.

    ignore: names in the file that start with one of these are dropped (a loss saved with the model).
    A module on meta gets the file's tensors themselves; otherwise values are copied, keeping dtype and device.
    """
    load_state(module, read_weights(path), str(find_weights(path)), ignore)


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str, ignore: Sequence[str] = ()) -> None:
    """`load_weights` from tensors; `where` names their source in the WeightsError.

    A prefix that all names of `state` share is taken off where the names fit without it.
    """
    kept = {name: tensor for name, tensor in bare_names(state).items() if not name.startswith(tuple(ignore))}
    target = module.state_dict()
    names = dict(zip(without_prefix(target), target, strict=True))  # bare name -> the module's own
    fitting = max(shared_prefixes(kept), key=lambda prefix: sum(name.removeprefix(prefix) in names for name in kept))
    source = without_prefix(kept, fitting)
    missing = [names[bare] for bare in names if bare not in source]
    unexpected = [bare for bare in source if bare not in names]
    shapes = [
        f"{name} {list(source[bare].shape)} instead of {list(target[name].shape)}"
        for bare, name in names.items()
        if bare in source and source[bare].shape != target[name].shape
    ]
    faults = [
        f"{len(items)} {what}: {first_few(items)}"
        for what, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if items
    ]
    if faults:
        if missing and unexpected:
            faults.append(explain_names(source, names))
        raise WeightsError(
            f"weights: {where} does not fit {type(module).__name__}: {'; '.join(faults)}; "
            "check that type and sizes in the config are those the weights were trained with"
        )
    check_values(source, target, where)
    on_meta = any(tensor.is_meta for tensor in target.values())
    new = {name: source[bare] for bare, name in names.items()}
    if on_meta:
        new = {name: _computable(tensor, target[name].dtype) for name, tensor in new.items()}
    module.load_state_dict(new, strict=True, assign=on_meta)


def explain_names(source: Collection[str], wanted: Collection[str]) -> str:
    """In words, the names of a file that does not fit; where a prefix hides all `wanted` names among others, that prefix."""
    prefixes = {name.removesuffix(first) for first in list(wanted)[:1] for name in source if name.endswith(f".{first}")}
    for prefix in sorted(prefixes):
        inside = {name.removeprefix(prefix) for name in source if name.startswith(prefix)}
        others = [name for name in source if not name.startswith(prefix)]
        if inside == set(wanted):
            return (
                f"all of its names are there with {prefix!r} before them; the others, such as {others[0]}, are left out by "
                "`python -m tools.weights.convert` with --ignore PREFIX"
            )
    return describe_names(source)


def check_values(source: Mapping[str, Tensor], target: Mapping[str, Tensor], where: str) -> None:
    """Raise WeightsError for weights that would load and be wrong: NaN, infinity, or whole numbers for fractions.

    source: by bare names; target: the tensors of the module, which may have "module." before them.
    """
    bare = without_prefix(target)
    parts = {name: tensor for name, tensor in source.items() if name in bare and bare[name].is_floating_point()}
    whole = [f"{name} ({_dtype_name(t)})" for name, t in parts.items() if not t.is_floating_point()]
    if whole:
        raise WeightsError(
            f"weights: {where}: {len(whole)} tensors hold whole numbers: {first_few(whole)}; quantized weights are not read; "
            "give those they were made from"
        )
    broken = [name for name, tensor in parts.items() if not tensor.is_meta and not _is_finite(tensor)]
    if broken:
        raise WeightsError(
            f"weights: {where}: {len(broken)} of {len(source)} tensors hold NaN or infinity: {first_few(broken)}; the run "
            "that saved them had diverged, or the file is damaged; give an earlier checkpoint"
        )


def _is_finite(tensor: Tensor) -> bool:
    small = tensor.element_size() == 1  # torch has no isfinite of float8
    return bool((tensor.float() if small else tensor).isfinite().all())


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _computable(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor`, or where layers do not compute in its precision (float8, float64) a copy in `dtype`."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.element_size() in (1, 8) else tensor


def require_kind(source: str | Path, registry: Registry, where: str) -> None:
    """Raise ConfigError where the config.json of a weights folder names a component of another registry.

    where: the key that names `source`.
    """
    path = Path(files.expand_home(source))
    folder = path if path.is_dir() else path.parent
    name = read_config(folder).get("type") if (folder / CONFIG_FILE).is_file() else None
    needed, wanted, _ = _KINDS[registry.name]
    if not isinstance(name, str) or name in registered_names(needed):
        return
    for other, kind, key in _KINDS.values():
        if name in registered_names(other):
            raise ConfigError(
                f"{where}: {source} holds {kind} ({name}, as its {CONFIG_FILE} says); allowed: {wanted}; name this one in {key}"
            )


def save_weights(folder: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write model.safetensors and config.json into `folder`, each atomically. Returns the folder.

    Raises WeightsError when the folder cannot be written; its old content then stays.
    """
    folder = Path(files.expand_home(folder))
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor  # safetensors does not store shared tensors
        storages.add(storage)
    with files.write_errors_as(WeightsError, f"weights: {folder}", "free some space or choose another folder"):
        files.atomic_write(folder / WEIGHTS_FILE, lambda part: files.write_tensors(part, tensors, {"format": "pt"}))
        files.atomic_write(folder / CONFIG_FILE, lambda part: files.write_json(part, dict(config)))
    return folder


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a weights folder. Raises WeightsError when it is missing or damaged."""
    file = Path(files.expand_home(folder)) / CONFIG_FILE
    if not file.is_file():
        raise WeightsError(
            f"weights: {folder}: no {CONFIG_FILE} there; give a folder that holds one next to the weights"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"weights: {file}: cannot be read ({error.strerror}); see to its permissions") from error
    except ValueError as error:
        raise WeightsError(f"weights: {file}: not JSON ({error}); copy the file again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"weights: {file}: holds a {type(config).__name__}; a JSON object is needed")
    return config
