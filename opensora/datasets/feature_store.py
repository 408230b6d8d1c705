"""Features encoded before training: latents and text states in files that are named by a hash of their sources.

    FOLDER/files/                     per source file: size, modification time, hash of its bytes; each file is read once
    FOLDER/video-HASH/about.json      one folder per autoencoder (config, weights, precision)
                      clips-HASH.json one file per way of cutting clips (start, crop, frame interval, ...): sizes, variants
                      ab/cdef.safetensors  the moments of one clip: mean, then deviation, on channels
                      ab/cdef.bad     instead of it: why the clip could not be encoded
    FOLDER/text-HASH/                 the same for text encoders; items are named by the cleaned caption

A changed caption, video or setting is another name, so nothing else is encoded again. Every file is written atomically:
a file under its final name is complete. tools/features/encode.py fills a folder, training/cached_features.py opens it.
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
from opensora.datasets.base import CaptionedDataset, ClipSize
from opensora.datasets.row_report import Report
from opensora.errors import BadClip, ConfigError, DataError
from opensora.rng import Draw, key_seed
from opensora.types import Clip

_BLAKE2B = partial(hashlib.blake2b, digest_size=16)


class CacheableDataset(CaptionedDataset, Protocol):
    """A data set that can identify a clip without making it."""

    def settings(self) -> dict[str, Any]:
        """Settings that make clips of any size from any row, as plain values."""

    def random_settings(self) -> list[str]:
        """The settings by which a clip depends on the draw, in words; [] if a row is always the same clip."""

    def row_fingerprint(self, row: int, file_hash: Callable[[str], str]) -> dict[str, Any]:
        """The content of a row, as plain values. Raises BadClip if a file is missing."""

    def row_label(self, row: int) -> str:
        """The row in messages."""

    def manifest_index(self, row: int) -> int:
        """`Clip.row` of the row."""

    def caption(self, row: int, draw: Draw) -> str:
        """The caption of `clip`, without making the clip."""


def content_hash(*parts: object) -> str:
    """32 hex digits that differ when any of the plain values does."""
    return files.hash_text(json.dumps(parts, sort_keys=True, default=list), 16)


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    with files.write_errors_as(DataError, path, "choose a writable place with free space"):
        files.atomic_write(path, fill)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    _write(path, lambda part: files.write_json(part, values))


def _read_json(path: Path) -> dict[str, Any] | None:
    """None when the file is missing; DataError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and encode again") from error


class FileHashes:
    """Hashes of files and folders by their bytes.

    A hash is recorded under the file's path. It is used again while size and modification time are the same, or when the
    file is gone: training from stored features needs no footage. remember: record on the disk, not only in this process.
    """

    def __init__(self, folder: Path, remember: bool = False):
        self.folder = folder / "files"
        self.remember = remember
        self._records: dict[str, dict[str, Any]] = {}  # those of this process that it may not write

    def of(self, path: str) -> str:
        """The hash. Raises BadClip when the path is missing and has no record."""
        path = os.path.abspath(path)
        if os.path.isdir(path):
            contents = content_hash(
                [(name, self.of(os.path.join(path, name))) for name in files.list_files(Path(path))]
            )
            self._record(path, {"contents": contents})
            return contents
        record = self._records.get(path) or _read_json(self._file(path))
        try:
            stat = os.stat(path)
        except OSError as error:
            if record is None:
                raise BadClip(f"{path}: {error.strerror}; check the path or remove the row") from error
            return record["contents"]
        state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        if record is None or not record.items() >= state.items():
            try:
                record = {**state, "contents": files.hash_file(path, _BLAKE2B)}
            except OSError as error:
                raise BadClip(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
            self._record(path, record)
        return record["contents"]

    def _record(self, path: str, record: dict[str, Any]) -> None:
        if self.remember:
            _write_json(self._file(path), {"path": path, **record})
        else:
            self._records[path] = record

    def _file(self, path: str) -> Path:
        name = content_hash(path)
        return self.folder / name[:2] / f"{name[2:]}.json"


@dataclass(frozen=True)
class FeatureStore:
    """The items of one network."""

    path: Path

    @classmethod
    def create(cls, folder: str | Path, kind: str, network: Mapping[str, Any], **about: object) -> "FeatureStore":
        """The store of a network, with `about` recorded in it. kind: "video" or "text"."""
        store = cls(Path(folder) / f"{kind}-{digest(network)}")
        if store.about() is None:
            _write_json(store.path / "about.json", {"network": network, **about})
        return store

    @classmethod
    def find(
        cls, folder: str | Path, kind: str, network: Mapping[str, Any], where: str, how_to_encode: str
    ) -> "FeatureStore":
        """The store of exactly this network. Raises ConfigError with the difference from the most similar network there."""
        store = cls(Path(folder) / f"{kind}-{digest(network)}")
        if store.about() is None:
            others = [(_read_json(path) or {})["network"] for path in Path(folder).glob(f"{kind}-*/about.json")]
            nearest = _nearest(network, others, "nothing is stored there yet")
            raise ConfigError(f"{where}: {folder} holds no features of this network: {nearest}; {how_to_encode}")
        return store

    def about(self) -> dict[str, Any] | None:
        """{"network": its description, ...}, with what the encoder recorded of its features; None without a store."""
        return _read_json(self.path / "about.json")

    def clip_settings(self, dataset: CacheableDataset) -> dict[str, Any] | None:
        """Sizes, variants and frame rates of the stored clips that were cut by the data set's settings; None without any."""
        return _read_json(self._clips_file(dataset))

    def other_clip_settings(self, dataset: CacheableDataset) -> str:
        """The differences of the data set's settings from the most similar ones in the store, in words."""
        others = [(_read_json(path) or {})["settings"] for path in self.path.glob("clips-*.json")]
        return _nearest(dataset.settings(), others, "no clips are stored there yet")

    def add_clip_settings(
        self, dataset: CacheableDataset, latent_sizes: Mapping[str, list[int]], variants: int
    ) -> None:
        """Record the clips to come, next to those recorded before. latent_sizes: by `size_name`."""
        before = self.clip_settings(dataset) or {}
        own = {"variants": variants, "fps": dataset.fps}
        settings = {
            "settings": dataset.settings(),
            "latent_sizes": {**before.get("latent_sizes", {}), **latent_sizes},
            "data_sets": {**before.get("data_sets", {}), dataset.where: own},
            **own,
        }
        if before != settings:
            _write_json(self._clips_file(dataset), settings)

    def has(self, key: str) -> bool:
        """True for an item whose header and length are intact."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.item_path(key), "pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def write(self, key: str, tensors: Mapping[str, Tensor], **metadata: str) -> None:
        on_host = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        _write(self.item_path(key), lambda part: files.write_tensors(part, on_host, metadata))
        self._bad_item(key).unlink(missing_ok=True)

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors and metadata of an item; None when it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.item_path(key), "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def mark_bad(self, key: str, reason: str) -> None:
        """Record why an item cannot be made, so that training skips its row as it would without a store."""
        _write_json(self._bad_item(key), {"reason": reason})

    def bad_reason(self, key: str) -> str | None:
        """The reason of `mark_bad`; None without one."""
        bad = _read_json(self._bad_item(key))
        return None if bad is None else bad["reason"]

    def _clips_file(self, dataset: CacheableDataset) -> Path:
        return self.path / f"clips-{digest(dataset.settings())}.json"

    def item_path(self, key: str) -> Path:
        """The file of an item, whether it is there or not."""
        return self.path / key[:2] / f"{key[2:]}.safetensors"

    def _bad_item(self, key: str) -> Path:
        return self.item_path(key).with_suffix(".bad")


def _nearest(here: Mapping[str, Any], others: Sequence[Mapping[str, Any]], default: str) -> str:
    """The shortest of the differences from other descriptions, in words."""
    return min((_difference(here, there) for there in others), key=len, default=default)


def _difference(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    own, other = dict(_flat(here)), dict(_flat(there))
    return ", ".join(
        f"{name} is {other.get(name, 'not set')} there and {own.get(name, 'not set')} here"
        for name in sorted(own.keys() | other.keys())
        if own.get(name) != other.get(name)
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value, default=list)


def size_name(size: ClipSize) -> str:
    """Frames x height x width, as in files and messages."""
    return "x".join(map(str, size))


class ClipKeys:
    """The keys of a data set's items: hashes of (settings, fingerprint of the row, size, variant).

    variants: stored draws of each row; 1 for a data set that draws nothing.
    """

    def __init__(self, dataset: CacheableDataset, file_hashes: FileHashes, variants: int):
        self.dataset = dataset
        self.variants = variants
        self._file_hashes = file_hashes
        self._settings = dataset.settings()

    def of(self, row: int, size: ClipSize, variant: int) -> tuple[str, Draw]:
        """The item's key, and the draw that makes the clip. Raises BadClip, which names the row."""
        try:
            fingerprint = self.dataset.row_fingerprint(row, self._file_hashes.of)
        except BadClip as error:
            raise BadClip(f"{self.dataset.row_label(row)}: {error}") from error
        key = content_hash(self._settings, fingerprint, size)
        return content_hash(key, variant), Draw(key_seed(0, "variant", key), 0, variant)


class StoredClips:
    """A data set whose clips are read from a store: `Clip.video_CTHW` holds moments, `Clip.size` the pixels.

    sizes: of the clips that the run takes. Raises ConfigError when the store holds no clips made by these settings, or
    none of one of the sizes.
    """

    def __init__(
        self,
        dataset: CacheableDataset,
        store: FeatureStore,
        file_hashes: FileHashes,
        sizes: Sequence[ClipSize],
        where: str,
        how_to_encode: str,
    ):
        settings = store.clip_settings(dataset)
        if settings is None:
            nearest = store.other_clip_settings(dataset)
            raise ConfigError(
                f"{where}: {store.path} holds no clips of this data set's settings: {nearest}; {how_to_encode}"
            )
        self.latent_sizes: dict[str, list[int]] = settings["latent_sizes"]
        missing = [size for size in map(size_name, sizes) if size not in self.latent_sizes]
        if missing:
            raise ConfigError(
                f"{where}: {store.path} holds clips of {', '.join(self.latent_sizes)}; this run takes {missing[0]} "
                f"(frames x height x width); {how_to_encode}"
            )
        # Data sets of the same settings may differ in these; one whose manifest was moved gets the last ones.
        own = settings.get("data_sets", {}).get(dataset.where, settings)
        self.fps: float = own["fps"]
        self.keys = ClipKeys(dataset, file_hashes, own["variants"])
        self.dataset = dataset
        self.store = store
        self.how_to_encode = how_to_encode
        self.where = dataset.where
        self.num_frames = dataset.num_frames
        self.image_size = dataset.image_size

    def __len__(self) -> int:
        return len(self.dataset)

    def report(self) -> Report:
        return self.dataset.report()

    def clip(self, row: int, draw: Draw, size: ClipSize | None = None) -> Clip:
        """The stored moments of one variant of the row.

        size: in pixels; None = the data set's own. Raises BadClip if encoding did, DataError if nothing is stored.
        """
        size, variant = size or (self.num_frames, *self.image_size), 0
        if self.keys.variants > 1:
            variant = int(torch.randint(self.keys.variants, (), generator=draw.rng("variant")))
        key, variant_draw = self.keys.of(row, size, variant)
        item = self.store.read(key)
        if item is None:
            if (reason := self.store.bad_reason(key)) is not None:
                raise BadClip(reason)
            raise DataError(
                f"{self.dataset.row_label(row)}: its latents of {size_name(size)} are not in {self.store.path}; "
                f"{self.how_to_encode}"
            )
        tensors, metadata = item
        caption, index = self.dataset.caption(row, variant_draw), self.dataset.manifest_index(row)
        return Clip(tensors["moments"], caption, float(metadata["fps"]), index, size=size)
