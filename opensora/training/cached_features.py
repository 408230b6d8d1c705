"""A training run from stored features: stand-ins for the data set, the autoencoder and the text encoder.

datasets/feature_store.py defines the files, tools/features/encode.py writes them.
"""

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard

import torch
from mmengine.registry import Registry
from torch import Generator, Tensor

from opensora.datasets.base import ClipSize, Dataset
from opensora.datasets.feature_store import (
    CacheableDataset,
    FeatureStore,
    FileHashes,
    StoredClips,
    content_hash,
    size_name,
)
from opensora.errors import BadClip, ConfigError, DataError
from opensora.interfaces import Autoencoder
from opensora.models.codec import draw_latents
from opensora.registry import TEXT_ENCODERS, VAES, class_of, constructor
from opensora.schema import TrainRun
from opensora.training.checkpoint import resolve_part
from opensora.types import EncodedText

VIDEO, TEXT = "video", "text"
_PATH_ARGUMENTS = ("from_pretrained", "names")  # may name a file or folder even without a separator
_NEUTRAL_ARGUMENTS = ("micro_batch_size",)  # frames or clips coded at a time, each by itself
# Arguments, off by default, that networks did not have when the first features were stored.
_NEWER_SWITCHES = {"VideoAutoencoderKL": ("use_tiling",), "OpenSoraVAE_V1_2": ("use_tiling",)}
_SHOWN_LETTERS = 60  # of a caption in a message


def network_fingerprint(of: Registry, config: Mapping[str, Any], dtype: str, file_hashes: FileHashes) -> dict[str, Any]:
    """All that decides a network's features, as plain values: its config and type; files count by their bytes.

    Arguments that the config leaves out are those of the constructor, so that writing one down changes nothing; newer ones
    count where they are set. A name that is no file and has no recorded hash, such as a hub id, counts as itself.
    """
    parameters = inspect.signature(constructor(of, config["type"])).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    for name in _NEWER_SWITCHES.get(config["type"], ()):
        del defaults[name]
        config = {key: value for key, value in config.items() if key != name or value}
    return {"config": _with_hashes({**defaults, **config}, "", file_hashes), "dtype": dtype}


def _with_hashes(value: object, name: str, file_hashes: FileHashes) -> object:
    """`value` of argument `name`, with paths replaced by hashes."""
    if isinstance(value, Mapping):
        kept = {key: inner for key, inner in value.items() if key not in _NEUTRAL_ARGUMENTS}
        return {key: _with_hashes(inner, key, file_hashes) for key, inner in kept.items()}
    if isinstance(value, list | tuple):
        return [_with_hashes(inner, name, file_hashes) for inner in value]
    if isinstance(value, str) and name != "type" and (name in _PATH_ARGUMENTS or os.sep in value):
        try:
            return f"contents:{file_hashes.of(value)}"
        except BadClip:
            return value
    return value


def video_network(run: TrainRun, file_hashes: FileHashes) -> dict[str, Any]:
    """`network_fingerprint` of the autoencoder of a run whose dtype is chosen."""
    return network_fingerprint(VAES, resolve_part(run.vae), run.dtype, file_hashes)


def text_network(run: TrainRun, file_hashes: FileHashes) -> dict[str, Any]:
    """`network_fingerprint` of the text encoder of a run whose dtype is chosen."""
    return network_fingerprint(TEXT_ENCODERS, run.text_encoder or {}, run.dtype, file_hashes)


def caption_key(text_encoder: Mapping[str, Any]) -> Callable[[str], str]:
    """A function from a caption to the key of its item; captions that the encoder cleans to the same text share a key."""
    arguments = {key: value for key, value in text_encoder.items() if key != "type"}
    normalize = functools.partial(class_of(TEXT_ENCODERS, text_encoder["type"]).normalize_caption, **arguments)
    return lambda caption: content_hash(normalize(caption))


def _is_cacheable(dataset: Dataset) -> TypeGuard[CacheableDataset]:
    return hasattr(dataset, "row_fingerprint")


def require_cacheable(dataset: Dataset, where: str) -> CacheableDataset:
    """The data set. Raises ConfigError if it cannot identify its clips."""
    if not _is_cacheable(dataset):
        raise ConfigError(
            f"{where}: key 'dataset': clips of {type(dataset).__name__} cannot be stored; allowed: VideoTextDataset, "
            "MovingShapes, MovingObjects; use one of them, or store the captions alone (only=text, and no load_video_features)"
        )
    return dataset


def how_to_encode(where: str, folder: str) -> str:
    return f"make them with `python -m tools.features.encode {where} {folder}` and the same key=value settings"


def stored_clips(run: TrainRun, dataset: Dataset, sizes: Sequence[ClipSize], where: str) -> Dataset:
    """`dataset`, with its clips of these sizes read from `load_video_features` if the run names a folder.

    Raises ConfigError when the folder's latents are of another autoencoder, size or choice of frames.
    """
    folder = run.load_video_features
    if folder is None:
        return dataset
    file_hashes, key, advice = (
        FileHashes(Path(folder)),
        f"{where}: key 'load_video_features'",
        how_to_encode(where, folder),
    )
    store = FeatureStore.find(folder, VIDEO, video_network(run, file_hashes), key, advice)
    return StoredClips(require_cacheable(dataset, where), store, file_hashes, sizes, key, advice)


def stored_texts(run: TrainRun, where: str) -> "StoredTexts | None":
    """The stand-in for the text encoder, if the run names `load_text_features`; ConfigError for those of another one."""
    folder = run.load_text_features
    if folder is None:
        return None
    key, advice = f"{where}: key 'load_text_features'", how_to_encode(where, folder)
    store = FeatureStore.find(folder, TEXT, text_network(run, FileHashes(Path(folder))), key, advice)
    return StoredTexts(store, caption_key(run.text_encoder or {}), advice)


def stored_latents(dataset: Dataset) -> "StoredLatents | None":
    """The stand-in for the autoencoder, if `stored_clips` replaced the data set."""
    return StoredLatents(dataset) if isinstance(dataset, StoredClips) else None


class StoredLatents(Autoencoder):
    """Stands in for an autoencoder: its "videos" are moments, and encoding draws from them."""

    def __init__(self, clips: StoredClips):
        super().__init__()
        about = clips.store.about() or {}
        self.latent_channels: int = about["latent_channels"]
        self.where = str(clips.store.path)
        self._sizes = clips.latent_sizes

    def load(self) -> Self:
        return self

    def latent_size(self, size: ClipSize) -> ClipSize:
        """(frames, rows, columns) of the latents of clips of a size in pixels."""
        frames, rows, columns = self._sizes[size_name(size)]
        return frames, rows, columns

    def clip_shape(self, size: ClipSize) -> tuple[int, ...]:
        """Shape [2 C, t, h, w] of the moments of clips of a size in pixels."""
        return 2 * self.latent_channels, *self.latent_size(size)

    def encode(self, moments_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """The latents of the autoencoder's `encode` with these generators; None = the mode."""
        return draw_latents(moments_BCTHW, rngs)

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Always raises ConfigError."""
        raise ConfigError(
            f"load_video_features: {self.where} holds latents, and the autoencoder that makes videos of them is not loaded; "
            "allowed: runs that decode nothing; remove load_video_features, or what needs videos"
        )


class StoredTexts:
    """Stands in for a text encoder: reads token states by caption."""

    def __init__(self, store: FeatureStore, key: Callable[[str], str], how_to_encode: str):
        self.store = store
        self.key = key
        self.how_to_encode = how_to_encode
        self.denoiser_args: dict[str, Any] = (store.about() or {})["tells"]
        self.device = torch.device("cpu")

    def load(self) -> Self:
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Set the device of the states; their type is the stored one, which the run's dtype chose."""
        self.device = torch.device(device)
        return self

    def encode(self, captions: Sequence[str]) -> EncodedText:
        """The stored states of the captions. Raises DataError for one that is not stored."""
        items = [self._read(caption) for caption in captions]
        masks = [tensors["mask"] for tensors in items if "mask" in tensors]
        return EncodedText(
            torch.cat([tensors["text"] for tensors in items]).to(self.device),
            torch.cat(masks).to(self.device) if masks else None,
        )

    def _read(self, caption: str) -> dict[str, Tensor]:
        item = self.store.read(self.key(caption))
        if item is None:
            shown = caption if len(caption) <= _SHOWN_LETTERS else caption[:_SHOWN_LETTERS] + "..."
            raise DataError(f"caption {shown!r}: its text features are not in {self.store.path}; {self.how_to_encode}")
        return item[0]
