"""Read a weight file: find the one that a path means, read its tensors whichever program wrote it.

The kind of a file is read from its content: names end in anything. A file that holds no weights of a model is refused
with a sentence that says what it is.
"""

import json
import os
import re
import zipfile
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from opensora import files
from opensora.errors import WeightsError
from opensora.log import logger

WEIGHTS_FILE = "model.safetensors"
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
_ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_INDEX = re.compile(r"\.index(\.\w+)?\.json$")  # diffusers writes a variant before .json or before .safetensors
_SHARD = re.compile(r"[-_]\d{4,6}-of-\d{4,6}\.")
_NO_MODEL = re.compile(
    r"(?<![^._-])(optim|(lr_?)?sched|scaler|rng|random_state|training_args|adapter_)", re.IGNORECASE
)  # begins a part of the name
# Keys under which training programs keep the weights. An average comes first: programs sample with it.
_WRAPPERS = (
    *("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema"),
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights"),
)
_PREFIX = "module."  # left by DistributedDataParallel
# Modules that torch puts around a model or its parts: compile, FullyShardedDataParallel, checkpoint_wrapper.
_WRAPPER_MODULES = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_POINTER, _LARGEST_POINTER = b"version https://git-lfs", 1024  # bytes
_OTHER_KINDS = (  # first bytes, what the file is, what to do
    (_POINTER, "a Git LFS pointer, not the weights themselves", "run `git lfs pull` where it lies"),
    (b"GGUF", "a GGUF file of quantized weights, which is not read", "give the .safetensors or .pt of the model"),
    (b"\x89HDF", "an HDF5 file, which is not read", "give the .safetensors or .pt of the model"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it and give the file in it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and give the file in it"),
    (b"Rar!", "a RAR archive", "unpack it and give the file in it"),
)
T = TypeVar("T")


def find_weights(path: str | Path) -> Path:
    """The weights file at `path`, or in the folder `path`. Raises WeightsError.

    Of a folder, the file with one of the usual names, otherwise the only file of weights; of several .ckpt the last one.
    """
    path = Path(files.expand_home(path))
    try:
        if path.is_file():
            return path
        if not path.is_dir():
            raise WeightsError(f"weights: {path}: {_absence(path)}; give a weights file or a folder that holds one")
        for name in _IN_FOLDER:
            if (path / name).is_file():
                return path / name
        names = sorted((each.name for each in path.iterdir() if each.is_file()), key=_by_numbers)
    except OSError as error:  # a folder that may not be read, or a name that is too long
        raise WeightsError(
            f"weights: {path}: cannot be read ({error.strerror}); correct the path or its permissions"
        ) from None
    candidates = [name for name in names if _INDEX.search(name) or name.lower().endswith(_ENDINGS)]
    candidates = [name for name in candidates if not _NO_MODEL.search(name)]
    whole = [name for name in candidates if _INDEX.search(name) or not _SHARD.search(name)]
    if candidates and not whole:
        raise WeightsError(
            f"weights: {path}: holds {len(candidates)} shards without their index ({first_few(candidates)}); "
            f"copy the file that ends in .index.json as well"
        )
    checkpoints = [
        name for name in whole if name.endswith(".ckpt")
    ]  # Lightning's, as Open-Sora-Plan's autoencoders ship
    if checkpoints and len(checkpoints) == len(whole):
        if len(checkpoints) > 1:
            logger().info("weights: %s: %s is taken, the last of %d", path, checkpoints[-1], len(checkpoints))
        return path / checkpoints[-1]
    if len(whole) == 1:
        return path / whole[0]
    if whole:
        raise WeightsError(
            f"weights: {path}: holds {len(whole)} files of weights ({first_few(whole, 6)}); name one of them"
        )
    raise WeightsError(f"weights: {path}: holds no weights; {_content(path, names)}")


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A sorting key by which epoch=9 comes before epoch=10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _absence(path: Path) -> str:
    """The reason why there is no such file, with the nearest name that exists."""
    import difflib

    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which does not exist"
    if re.match(r"\w{2,}:/", str(path)):  # Path makes one slash of two
        return "no such file or folder: addresses are not fetched, download it first"
    try:
        names = os.listdir(path.parent)
    except OSError:
        return "no such file or folder"
    same = [name for name in names if name.lower() == path.name.lower()]
    near = same or difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return f"no such file or folder; nearest: {near[0]!r}" if near else "no such file or folder"


def _content(folder: Path, names: Collection[str]) -> str:
    """In words, the content of a folder without weights, and what to give."""
    inside = sorted(each.name for each in folder.iterdir() if each.is_dir())
    if "model_index.json" in names:
        return f"it is a whole pipeline of diffusers; name one of its parts: {first_few(inside, 8)}"
    if ".metadata" in names:
        return "it is the sharded training state of a checkpoint; give the folder of the checkpoint or of the run"
    if any(name.startswith("adapter_") for name in names):
        return "it holds an adapter (LoRA), a change of other weights; merge it into those and give the result"
    content = f"; found: {first_few([*names, *inside])}" if names or inside else "; it is empty"
    return f"looked for {', '.join(_IN_FOLDER)}, *.ckpt{content}"


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from a safetensors file, a sharded index, a file of torch.save or a folder.

    Unwraps {"ema": ...}, {"state_dict": ...}, {"model": ...} and the like, and removes from the names what
    DistributedDataParallel, torch.compile, FSDP and checkpoint_wrapper put there. Pickles are read as tensors only, never
    as code.
    Raises WeightsError when the file is missing, damaged or of another kind.
    """
    file = find_weights(path)
    loaded = unwrap(_read(file), file)
    lora = [name for name in loaded if re.search(r"lora_", name)]
    if 2 * len(lora) > len(loaded):
        raise WeightsError(
            f"weights: {file}: holds LoRA weights ({first_few(lora, 2)}), a change of other weights; merge them into those "
            "where they were trained, and give the result"
        )
    if all(re.search(r"exp_avg", name) for name in loaded):
        raise WeightsError(f"weights: {file}: holds the moments of an optimizer; give the weights of the model")
    return bare_names(loaded)


def lfs_pointers(folder: str | Path) -> list[str]:
    """The names of files in a folder that are Git LFS pointers: what a clone without Git LFS leaves."""
    names = []
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else ():
        if path.is_file() and path.stat().st_size < _LARGEST_POINTER:
            with path.open("rb") as stream:
                if stream.read(len(_POINTER)) == _POINTER:
                    names.append(path.name)
    return names


def explain_unreadable(folder: str | Path) -> str:
    """In words, why the weights of a folder that another library failed to read may be unreadable; "" without a reason."""
    pointers = lfs_pointers(folder)
    if pointers:
        return (
            f"{folder}: {first_few(pointers)} are Git LFS pointers, not the files themselves; run `git lfs pull` there"
        )
    try:
        read_weights(folder)
    except WeightsError as error:
        return str(error)
    return ""


def _read(file: Path) -> object:
    try:
        index = _index_of(file)
        return _read_shards(file, index) if index is not None else _read_file(file)
    except UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"weights: {file}: damaged, or holds more than tensors and plain values, which is not read since it could run "
            f"code ({reason}); copy it again, or save its state_dict alone where it was made"
        ) from error
    except OSError as error:
        raise WeightsError(f"weights: {file}: cannot be read ({error.strerror or error}); see to the disk") from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"weights: {file}: cannot be read ({reason}); the file is damaged, copy it again") from error


def _index_of(file: Path) -> dict[str, str] | None:
    """Name of a tensor -> name of its shard, if the file is the index of a sharded one."""
    with file.open("rb") as stream:
        head = stream.read(9)
    if head[:1] != b"{" or _header_bytes(head) is not None:
        if _INDEX.search(file.name):
            raise ValueError("an index is JSON")
        return None
    index = json.loads(file.read_text(encoding="utf-8"))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        keys = first_few(index) if isinstance(index, dict) else type(index).__name__
        raise WeightsError(
            f"weights: {file}: JSON without a weight_map (it holds: {keys}), so no index of shards; give the weights"
        )
    return places


def _read_shards(file: Path, places: Mapping[str, str]) -> dict[str, Any]:
    shards = sorted(set(places.values()))
    missing = [shard for shard in shards if not (file.parent / shard).is_file()]
    if missing:
        raise WeightsError(
            f"weights: {file}: {len(missing)} of its {len(shards)} shards are missing: {first_few(missing)}; copy them to "
            f"{file.parent}"
        )
    loaded: dict[str, Any] = {}
    for shard in shards:
        read = _read(file.parent / shard)
        names = [name for name, place in places.items() if place == shard]
        tensors: Mapping[str, Any] = read if isinstance(read, Mapping) else {}
        absent, unknown = [n for n in names if n not in tensors], [n for n in tensors if n not in places]
        if absent or unknown:
            fault = f"lacks {first_few(absent)}" if absent else f"holds {first_few(unknown)}, which the index lacks"
            raise WeightsError(
                f"weights: {file.parent / shard}: {fault}; index and shards are of two versions: copy the whole folder again"
            )
        loaded.update({name: tensors[name] for name in names})  # another shard may hold an older copy of a name
    return loaded


def _read_file(file: Path) -> object:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise WeightsError(f"weights: {file}: empty, its copy or download failed; copy it again")
    header = _header_bytes(head)  # first: its length may begin with the bytes of any other kind
    if header is not None:
        if 8 + header > size:
            raise WeightsError(
                f"weights: {file}: a safetensors file that is cut off or damaged: its header takes {header} bytes, and the file "
                f"has {size}; copy it again"
            )
        return load_file(file) if files.is_utf8(file) else load(file.read_bytes())  # safetensors opens no other
    for beginning, kind, advice in _OTHER_KINDS:
        if head.startswith(beginning):
            raise WeightsError(f"weights: {file}: {kind}; {advice}")
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"weights: {file}: a web page or XML, not weights: its download failed; download it again")
    if head.startswith(b"PK\x03\x04"):
        _require_torch_archive(file)
        return _unpickle(file)
    if head.startswith(b"\x80"):  # torch.save before 1.6
        return _unpickle(file)
    raise WeightsError(
        f"weights: {file}: damaged or of an unknown kind (it begins with {head[:12]!r}); allowed: safetensors, or a file of "
        "torch.save; copy it again or give another one"
    )


def _header_bytes(head: bytes) -> int | None:
    """The length of the JSON at the beginning of a safetensors file; None for another file."""
    length = int.from_bytes(head[:8], "little")
    return length if head[8:9] == b"{" and length < 2**40 else None  # eight bytes of text are a larger number


def _require_torch_archive(file: Path) -> None:
    """Raise WeightsError for a zip that torch.save has not made."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise WeightsError(f"weights: {file}: cut off or damaged ({error}); copy it again") from None
    if not any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise WeightsError(
            f"weights: {file}: a zip archive that torch.save has not made (it holds {first_few(names)}); unpack it and give the "
            "weights in it"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(
            f"weights: {file}: a TorchScript program, which is not read since it is code; save its state_dict alone where "
            "it was made"
        )


def _unpickle(file: Path) -> object:
    # Programs save their command lines with the weights: plain data. Of a path, torch would believe the ending.
    with torch.serialization.safe_globals([Namespace]), file.open("rb") as stream:
        return torch.load(stream, map_location="cpu", weights_only=True)


def unwrap(loaded: object, file: Path) -> dict[str, Tensor]:
    """The tensors by name in what a training program saved. Raises WeightsError that lists its keys."""
    while isinstance(loaded, Mapping):
        if {"state", "param_groups"} <= set(loaded):
            raise WeightsError(f"weights: {file}: holds the state of an optimizer; give the weights of the model")
        parts = {key: value for key, value in loaded.items() if isinstance(value, Mapping) and _holds_tensors(value)}
        inner = next((key for key in _WRAPPERS if key in parts), None)
        if inner is None and not any(isinstance(value, Tensor) for value in loaded.values()):
            models = [key for key in parts if not _NO_MODEL.search(str(key))]
            inner = models[0] if len(models) == 1 else None
        if inner is None:
            break
        others = [str(key) for key in parts if key != inner]
        if others:
            logger().info("weights: %s: those under %r are taken; it holds %s as well", file, inner, first_few(others))
        loaded = parts[inner]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"weights: {file}: holds a {type(loaded).__name__}; give the file of a model's state_dict")
    plain = [key for key, value in loaded.items() if value is None or isinstance(value, (bool, int, float, str))]
    tensors = {key: value for key, value in loaded.items() if key not in plain}
    if not tensors or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()):
        raise WeightsError(
            f"weights: {file}: holds no dictionary of tensors, but {_kinds(loaded)}; give the file of a model's state_dict"
        )
    if plain:
        logger().info("weights: %s: %s left out, no tensors", file, first_few(map(str, plain)))
    return tensors


def _holds_tensors(values: Mapping[Any, Any]) -> bool:
    return any(isinstance(v, Tensor) or (isinstance(v, Mapping) and _holds_tensors(v)) for v in values.values())


def _kinds(loaded: Mapping[Any, Any]) -> str:
    if not loaded:
        return "an empty dictionary"
    return first_few([f"{key!r} ({_kind(value)})" for key, value in loaded.items()], 8)


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        count = sum(isinstance(each, Tensor) for each in value.values())
        return f"{count} tensors" if count else f"dictionary of {len(value)}"
    return "tensor" if isinstance(value, Tensor) else type(value).__name__


def bare_names(state: Mapping[str, T]) -> dict[str, T]:
    """`state` without the names of modules that torch puts around a model or its parts."""
    bare = {_WRAPPER_MODULES.sub("", name): value for name, value in state.items()}
    return without_prefix(bare if len(bare) == len(state) else state)


def without_prefix(state: Mapping[str, T], prefix: str = _PREFIX) -> dict[str, T]:
    """`state` without `prefix`, if every name has it."""
    wrapped = all(name.startswith(prefix) for name in state)
    return {name.removeprefix(prefix) if wrapped else name: value for name, value in state.items()}


def shared_prefixes(names: Collection[str]) -> list[str]:
    """The prefixes of whole modules that all names have, the shortest first; it is the empty one."""
    shared: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ["".join(f"{part}." for part in shared[:count]) for count in range(len(shared) + 1)]


def describe_names(names: Collection[str]) -> str:
    """The number of tensors of a file, and the first parts of their names with counts."""
    groups = Counter(name.partition(".")[0] + (".*" if "." in name else "") for name in names)
    listed = [f"{group} ({count})" if count > 1 else group for group, count in groups.items()]
    return f"the file holds {len(names)} tensors: {first_few(listed, 8)}"


def first_few(items: Iterable[str], shown: int = 4) -> str:
    """The first `shown` items, and how many more there are."""
    listed = list(items)
    return ", ".join(listed[:shown]) + (f" and {len(listed) - shown} more" if len(listed) > shown else "")
