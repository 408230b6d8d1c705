"""Features encoded before training: latents and text states in files that are named by what they were made from.

    FOLDER/files/                     of each source file: size, time of change, hash of its bytes; it is read once
    FOLDER/video-HASH/about.json      one folder per autoencoder (config, weights, precision)
                      clips-HASH.json one file per way of cutting clips (start, crop, frame interval, ...): sizes, draws
                      ab/cdef.safetensors  the moments of one clip: mean, then deviation, on channels
    FOLDER/text-HASH/                 the same for text encoders; items are named by the cleaned caption

A changed caption, video or setting is another name, so nothing else is made again. Every file is written
atomically: a file under its final name is complete. tools/features/encode.py fills a folder,
training/cached_features.py opens it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from opensora import files
from opensora.config import digest
from opensora.datasets.base import ClipSize, Dataset
from opensora.datasets.row_report import Report
from opensora.errors import BadClip, ConfigError, DataError
from opensora.rng import Draw, key_seed
from opensora.types import Clip

_BLAKE2B = partial(hashlib.blake2b, digest_size=16)
_BAD = ".bad"  # beside an item: why the clip could not be encoded


class CacheableDataset(Dataset, Protocol):
    """A data set that can say what a clip is without making it."""

    def settings(self) -> dict[str, Any]:
        """How clips of any size are made of any row, as plain values."""

    def drawn(self) -> list[str]:
        """The settings by which a clip depends on the draw, in words; none where a row is always the same clip."""

    def identity(self, row: int, contents: Callable[[str], str]) -> dict[str, Any]:
        """What a row is, as plain values; `contents` hashes a file. BadClip when a file is not there."""

    def place(self, row: int) -> str:
        """How a message names the row."""

    def number(self, row: int) -> int:
        """What `Clip.row` says of the row."""

    def caption(self, row: int, draw: Draw) -> str:
        """The caption that `clip` gives, without making the clip."""

    def captions(self, row: int) -> list[str]:
        """Every caption that `caption` can give."""


def content_hash(*parts: Any) -> str:
    """32 hex digits that differ when any of the plain values does."""
    text = json.dumps(parts, sort_keys=True, default=list)
    return files.hash_text(text, 16)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    _write(path, lambda part: files.write_json(part, values))


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a file atomically; DataError when the place cannot be written."""
    with files.write_errors_as(DataError, path, "choose a writable place with free space"):
        files.atomic_write(path, fill)


def read_json(path: Path) -> dict[str, Any] | None:
    """None when the file is not there; DataError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and encode again") from error


class FileHashes:
    """Hashes of files and folders by their bytes.

    A hash is kept under the file's path and taken again while size and time of change are the same, or when the file is
    no longer there: training from stored features needs no footage. remember: write what was found out.
    """

    def __init__(self, folder: Path, remember: bool = False):
        self.folder = folder / "files"
        self.remember = remember
        self._hashed: dict[str, dict[str, Any]] = {}  # what this process hashed and may not write down

    def of(self, path: str) -> str:
        """The hash; BadClip when the path neither exists nor was ever read."""
        path = os.path.abspath(path)
        if os.path.isdir(path):
            names = sorted(str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file())
            found = content_hash([(name, self.of(os.path.join(path, name))) for name in names])
            self._keep(path, {"contents": found})
            return found
        known = self._hashed.get(path) or read_json(self._record(path))
        try:
            stat = os.stat(path)
        except OSError as error:
            if known is None:
                raise BadClip(f"{path}: {error.strerror}; check the path or remove the row") from error
            return known["contents"]
        state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if known is not None and known.items() >= state.items():
            return known["contents"]
        try:
            found = files.hash_file(path, _BLAKE2B)
        except OSError as error:
            raise BadClip(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        self._keep(path, {**state, "contents": found})
        return found

    def _keep(self, path: str, record: dict[str, Any]) -> None:
        if self.remember:
            write_json(self._record(path), {"path": path, **record})
        else:
            self._hashed[path] = record

    def _record(self, path: str) -> Path:
        name = content_hash(path)
        return self.folder / name[:2] / f"{name[2:]}.json"


@dataclass(frozen=True)
class FeatureStore:
    """The items that one network made."""

    path: Path

    @classmethod
    def place(cls, folder: str | Path, kind: str, about: Mapping[str, Any]) -> "FeatureStore":
        """Where the items of the network that `about` describes belong. kind: "video" or "text"."""
        return cls(Path(folder) / f"{kind}-{digest(about)}")

    @classmethod
    def find(
        cls, folder: str | Path, kind: str, about: Mapping[str, Any], where: str, how_to_encode: str
    ) -> "FeatureStore":
        """The store that was filled by this very network; ConfigError says what other ones there are."""
        found = cls.place(folder, kind, about)
        if found.about() is None:
            others = {path.parent.name: read_json(path) or {} for path in Path(folder).glob(f"{kind}-*/about.json")}
            told = {name: difference(about, other["network"]) for name, other in others.items()}
            nearest = min(told.values(), key=len, default="nothing is stored there yet")
            raise ConfigError(f"{where}: {folder} holds no features of this network: {nearest}; {how_to_encode}")
        return found

    def about(self) -> dict[str, Any] | None:
        """What the network is under "network", and what it tells of its features beside it."""
        return read_json(self.path / "about.json")

    def file(self, key: str) -> Path:
        return self.path / key[:2] / f"{key[2:]}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the item is there and whole, as far as its header and length tell."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file(key), "pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def write(self, key: str, tensors: Mapping[str, Tensor], **facts: str) -> None:
        whole = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        _write(self.file(key), lambda part: files.write_tensors(part, whole, facts))
        self._bad(key).unlink(missing_ok=True)

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and facts of an item; None when it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file(key), "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def refuse(self, key: str, reason: str) -> None:
        """Note why an item cannot be made, so that training skips its row as it would without a store."""
        write_json(self._bad(key), {"reason": reason})

    def refused(self, key: str) -> str | None:
        """Why the item could not be made; None when it was never tried."""
        found = read_json(self._bad(key))
        return None if found is None else found["reason"]

    def _bad(self, key: str) -> Path:
        return self.file(key).with_suffix(_BAD)


def difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """In which plain values two descriptions differ, in words."""
    here, there = dict(_flat(mine)), dict(_flat(theirs))
    told = [
        f"{name} is {there.get(name, 'not set')} there and {here.get(name, 'not set')} here"
        for name in sorted(here.keys() | there.keys())
        if here.get(name) != there.get(name)
    ]
    return ", ".join(told)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value, default=list)


class ClipKeys:
    """The names of a data set's items: (settings, identity of the row, size, variant) -> key.

    variants: how many draws of each row there are; a data set that draws nothing has one.
    """

    def __init__(self, dataset: CacheableDataset, contents: FileHashes, variants: int):
        self.dataset = dataset
        self.contents = contents
        self.variants = variants
        self._settings = dataset.settings()

    def of(self, row: int, size: ClipSize, variant: int) -> tuple[str, Draw]:
        """The item's key, and the draw that makes the clip; BadClip names the row."""
        try:
            identity = self.dataset.identity(row, self.contents.of)
        except BadClip as error:
            raise BadClip(f"{self.dataset.place(row)}: {error}") from error
        key = content_hash(self._settings, identity, size)
        return content_hash(key, variant), Draw(key_seed(0, "variant", key), 0, variant)


def settings_file(store: FeatureStore, dataset: CacheableDataset) -> Path:
    return store.path / f"clips-{digest(dataset.settings())}.json"


def size_name(size: ClipSize) -> str:
    """Frames x height x width, as files and messages have it."""
    return "x".join(map(str, size))


class StoredClips:
    """A data set whose clips are read from a store: `Clip.video_CTHW` then holds moments, `Clip.size` the pixels.

    sizes: that will be asked for. Raises ConfigError when the store holds no clips made by these settings, or none of
    one of the sizes.
    """

    def __init__(
        self,
        dataset: CacheableDataset,
        store: FeatureStore,
        contents: FileHashes,
        sizes: Sequence[ClipSize],
        where: str,
        how_to_encode: str,
    ):
        made = read_json(settings_file(store, dataset))
        if made is None:
            others = [read_json(path) or {} for path in store.path.glob("clips-*.json")]
            told = [difference(dataset.settings(), other["settings"]) for other in others]
            nearest = min(told, key=len, default="no clips are stored there yet")
            raise ConfigError(
                f"{where}: {store.path} holds no clips of this data set's settings: {nearest}; {how_to_encode}"
            )
        missing = [size for size in map(size_name, sizes) if size not in made["latent_sizes"]]
        if missing:
            raise ConfigError(
                f"{where}: {store.path} holds clips of {', '.join(made['latent_sizes'])}; this run takes {missing[0]} "
                f"(frames x height x width); {how_to_encode}"
            )
        self.dataset = dataset
        self.store = store
        self.how_to_encode = how_to_encode
        # another data set of these settings may have others; one whose manifest was moved gets the last ones
        own = made.get("data_sets", {}).get(dataset.where, made)
        self.names = ClipKeys(dataset, contents, own["variants"])
        self.latent_sizes: dict[str, list[int]] = made["latent_sizes"]
        self.fps: float = own["fps"]
        self.where = dataset.where
        self.num_frames = dataset.num_frames
        self.image_size = dataset.image_size

    def __len__(self) -> int:
        return len(self.dataset)

    def report(self) -> Report:
        return self.dataset.report()

    def clip(self, row: int, draw: Draw, size: ClipSize | None = None) -> Clip:
        """The stored moments of one of the row's variants; BadClip where encoding met one, DataError where none was made.

        size: in pixels; None = the data set's own.
        """
        size, variant = size or (self.num_frames, *self.image_size), 0
        if self.names.variants > 1:
            variant = int(torch.randint(self.names.variants, (), generator=draw.rng("variant")))
        key, made_by = self.names.of(row, size, variant)
        found = self.store.read(key)
        if found is None:
            reason = self.store.refused(key)
            if reason is not None:
                raise BadClip(reason)
            raise DataError(
                f"{self.dataset.place(row)}: its latents of {size_name(size)} are not in {self.store.path}; {self.how_to_encode}"
            )
        tensors, facts = found
        return Clip(
            tensors["moments"],
            self.dataset.caption(row, made_by),
            float(facts["fps"]),
            self.dataset.number(row),
            size=size,
        )
