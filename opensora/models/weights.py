"""Weight files: read the usual kinds, load strictly with a readable report, write safetensors."""

import json
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from opensora import files
from opensora.errors import WeightsError

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Weight files of a folder; the first that exists is used.
_IN_FOLDER = (
    WEIGHTS_FILE,
    "diffusion_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "pytorch_model.bin.index.json",  # ColossalAI's shards
)
_PICKLES = (".pt", ".pth", ".ckpt", ".bin")
_WRAPPERS = ("ema", "state_dict", "model")  # keys under which training programs keep the weights
_PREFIX = "module."  # left by DistributedDataParallel


def find_weights(path: str | Path) -> Path:
    """The weights file at `path`, or in the folder `path`. Raises WeightsError."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"weights: {path}: no such file or folder; give a weights file or a folder that holds one")
    for name in _IN_FOLDER:
        if (path / name).is_file():
            return path / name
    checkpoints = sorted(path.glob("*.ckpt"))  # Lightning's, as Open-Sora-Plan's first autoencoders ship
    if checkpoints:
        return checkpoints[-1]
    raise WeightsError(f"weights: {path}: holds no weights; looked for {', '.join(_IN_FOLDER)}, *.ckpt")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from a safetensors file, a sharded index, a .pt/.pth/.ckpt/.bin or a folder.

    Unwraps {"ema": ...}, {"state_dict": ...}, {"model": ...} and removes a "module." before every name. Pickles are
    read as tensors only, never as code. Raises WeightsError when the file is missing, damaged or of another kind.
    """
    file = find_weights(path)
    try:
        if file.name.endswith(".index.json"):
            shards = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
            loaded: dict[str, Any] = {}
            for shard in shards:
                loaded.update(_read_file(file.parent / shard))
        elif file.suffix in (".safetensors", *_PICKLES):
            loaded = _read_file(file)
        else:
            raise WeightsError(
                f"weights: {file}: unknown kind {file.suffix!r}; allowed: .safetensors, .index.json, {', '.join(_PICKLES)}"
            )
    except UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"weights: {file}: damaged, or holds more than tensors and plain values, which is not read since it could run "
            f"code ({reason}); copy it again, or save its state_dict alone where it was made"
        ) from error
    except (
        OSError,
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise WeightsError(f"weights: {file}: cannot be read ({error}); the file is damaged, copy it again") from error
    return _unwrap(loaded, file)


def _read_file(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        return load_file(file)
    with torch.serialization.safe_globals([Namespace]):  # command lines that programs save with the weights; plain data
        return torch.load(file, map_location="cpu", weights_only=True)


def _unwrap(loaded: object, file: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise WeightsError(f"weights: {file}: holds no dictionary of tensors; give the file of a model's state_dict")
    return without_prefix(loaded)


def without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` without the prefix "module.", if every name has it."""
    wrapped = all(name.startswith(_PREFIX) for name in state)
    return {name.removeprefix(_PREFIX) if wrapped else name: tensor for name, tensor in state.items()}


def load_weights(module: nn.Module, path: str | Path, ignore: Sequence[str] = ()) -> None:
    """Load the weights of `path` into `module`; they must fit exactly. Raises WeightsError.

    ignore: names in the file that start with one of these are dropped (a loss saved with the model).
    A module on meta gets the file's tensors themselves; otherwise values are copied, keeping dtype and device.
    """
    load_state(module, read_weights(path), str(find_weights(path)), ignore)


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str, ignore: Sequence[str] = ()) -> None:
    """`load_weights` from tensors; `where` names their source in the WeightsError."""
    source = {name: tensor for name, tensor in without_prefix(state).items() if not name.startswith(tuple(ignore))}
    target = module.state_dict()
    names = dict(zip(without_prefix(target), target, strict=True))  # bare name -> the module's own
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
        raise WeightsError(
            f"weights: {where} does not fit {type(module).__name__}: {'; '.join(faults)}; "
            "check that type and sizes in the config are those the weights were trained with"
        )
    on_meta = any(tensor.is_meta for tensor in target.values())
    module.load_state_dict({name: source[bare] for bare, name in names.items()}, strict=True, assign=on_meta)


def first_few(items: Iterable[str], shown: int = 4) -> str:
    """The first `shown` items, and how many more there are."""
    listed = list(items)
    return ", ".join(listed[:shown]) + (f" and {len(listed) - shown} more" if len(listed) > shown else "")


def save_weights(folder: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Path:
    """Write model.safetensors and config.json into `folder`, each atomically. Returns the folder.

    Raises WeightsError when the folder cannot be written; its old content then stays.
    """
    folder = Path(folder)
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
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise WeightsError(
            f"weights: {folder}: no {CONFIG_FILE} there; give a folder that holds one next to the weights"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"weights: {file}: not JSON ({error}); copy the file again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"weights: {file}: holds a {type(config).__name__}; a JSON object is needed")
    return config
