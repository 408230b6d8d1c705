"""A training run with features that were encoded before: what takes the place of data set, autoencoder, text encoder.

datasets/feature_store.py says how they lie on the disk, tools/features/encode.py makes them.
"""

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from mmengine.registry import Registry
from torch import Generator, Tensor, nn

from opensora.datasets.base import ClipSize
from opensora.datasets.feature_store import (
    CacheableDataset,
    FeatureStore,
    FileHashes,
    StoredClips,
    content_hash,
    size_name,
)
from opensora.errors import BadClip, ConfigError, DataError
from opensora.models.codec import draw_latents
from opensora.registry import TEXT_ENCODERS, VAES, constructor
from opensora.schema import TrainRun
from opensora.training.checkpoint import resolve_part
from opensora.types import EncodedText

VIDEO, TEXT = "video", "text"
_FILES = ("from_pretrained", "names")  # arguments that may name a file or a folder, by whatever word
_NO_MATTER = ("micro_batch_size",)  # frames or clips coded at a time, each for itself
SHOWN = 60  # letters of a caption in a message


def network_fingerprint(of: Registry, config: Mapping[str, Any], dtype: str, contents: FileHashes) -> dict[str, Any]:
    """What decides a network's features, as plain values: its config, where files count by what is in them, and its type.

    Arguments that the config leaves out are those of the constructor, so that writing one down changes nothing. A name that
    is no file here and never was one, such as a hub id, stands for itself.
    """
    parameters = inspect.signature(constructor(of, config["type"])).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return {"config": _described({**defaults, **config}, "", contents), "dtype": dtype}


def _described(value: Any, name: str, contents: FileHashes) -> Any:
    if isinstance(value, Mapping):
        return {key: _described(inner, key, contents) for key, inner in value.items() if key not in _NO_MATTER}
    if isinstance(value, list | tuple):
        return [_described(inner, name, contents) for inner in value]
    if isinstance(value, str) and name != "type" and (name in _FILES or os.sep in value):
        try:
            return f"contents:{contents.of(value)}"
        except BadClip:
            return value
    return value


def video_network(run: TrainRun, contents: FileHashes) -> dict[str, Any]:
    """The autoencoder of a run whose dtype is chosen; see `network_fingerprint`."""
    return network_fingerprint(VAES, resolve_part(run.vae), run.dtype, contents)


def text_network(run: TrainRun, contents: FileHashes) -> dict[str, Any]:
    """The text encoder of a run whose dtype is chosen; see `network_fingerprint`."""
    return network_fingerprint(TEXT_ENCODERS, run.text_encoder or {}, run.dtype, contents)


def caption_key(text_encoder: Mapping[str, Any]) -> Callable[[str], str]:
    """From a caption to the name of its item: captions that the encoder cannot tell apart share one."""
    create: Any = constructor(TEXT_ENCODERS, text_encoder["type"])
    arguments = {key: value for key, value in text_encoder.items() if key != "type"}
    encoder = getattr(create, "__wrapped_class__", create)
    cleaned = functools.partial(encoder.cleaned, **arguments)
    return lambda caption: content_hash(cleaned(caption))


def require_storable(dataset: Any, where: str) -> CacheableDataset:
    """ConfigError for a data set that cannot name its clips."""
    if not hasattr(dataset, "identity"):
        raise ConfigError(
            f"{where}: key 'dataset': clips of {type(dataset).__name__} cannot be stored; allowed: VideoTextDataset, "
            "MovingShapes; use one of them, or store the captions alone (only=text, and no load_video_features)"
        )
    return dataset


def how_to_encode(where: str, folder: str) -> str:
    return f"make them with `python -m tools.features.encode {where} {folder}` and the same key=value settings"


def stored_clips(run: TrainRun, dataset: Any, sizes: Sequence[ClipSize], where: str) -> Any:
    """`dataset` with its clips, of these sizes, taken from `load_video_features`, if the run names one.

    Raises ConfigError when the folder's latents are of another autoencoder, size or choice of frames.
    """
    folder = run.load_video_features
    if folder is None:
        return dataset
    contents, here = FileHashes(Path(folder)), f"{where}: key 'load_video_features'"
    store = FeatureStore.find(folder, VIDEO, video_network(run, contents), here, how_to_encode(where, folder))
    return StoredClips(require_storable(dataset, where), store, contents, sizes, here, how_to_encode(where, folder))


def stored_texts(run: TrainRun, where: str) -> "StoredTexts | None":
    """What stands in for the text encoder, if the run names `load_text_features`; ConfigError for those of another."""
    folder = run.load_text_features
    if folder is None:
        return None
    contents, here = FileHashes(Path(folder)), f"{where}: key 'load_text_features'"
    store = FeatureStore.find(folder, TEXT, text_network(run, contents), here, how_to_encode(where, folder))
    return StoredTexts(store, caption_key(run.text_encoder or {}), how_to_encode(where, folder))


def stored_latents(dataset: Any) -> "StoredLatents | None":
    """What stands in for the autoencoder where `stored_clips` took the place of the data set."""
    return StoredLatents(dataset) if isinstance(dataset, StoredClips) else None


class StoredLatents(nn.Module):
    """In the place of an autoencoder: its "videos" are moments, and encoding draws from them."""

    def __init__(self, clips: StoredClips):
        super().__init__()
        about = clips.store.about() or {}
        self.latent_channels: int = about["latent_channels"]
        self.where = str(clips.store.path)
        self._sizes = clips.latent_sizes

    def load(self) -> Self:
        return self

    def latent_size(self, size: ClipSize) -> tuple[int, ...]:
        """(frames, rows, columns) in pixels of the stored clips -> the same of the latents."""
        return tuple(self._sizes[size_name(size)])

    def clip_shape(self, size: ClipSize) -> tuple[int, ...]:
        """What stands for a clip of a size in pixels: moments, [2 C, t, h, w]."""
        return 2 * self.latent_channels, *self.latent_size(size)

    def encode(self, moments_BCTHW: Tensor, rngs: Sequence[Generator] | None = None) -> Tensor:
        """The latents that the autoencoder would have given with these generators; None = the mode."""
        return draw_latents(moments_BCTHW, rngs)

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Never: ConfigError."""
        raise ConfigError(
            f"load_video_features: {self.where} holds latents, and the autoencoder that makes videos of them is not loaded; "
            "allowed: runs that decode nothing; remove load_video_features, or what asks for videos"
        )


class StoredTexts:
    """In the place of a text encoder: token states by caption."""

    def __init__(self, store: FeatureStore, key: Callable[[str], str], how_to_encode: str):
        self.store = store
        self.key = key
        self.how_to_encode = how_to_encode
        self.denoiser_args: dict[str, Any] = (store.about() or {})["tells"]
        self.device = torch.device("cpu")

    def load(self) -> Self:
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Where states go; their type is the stored one, which the run's dtype chose."""
        self.device = torch.device(device)
        return self

    def encode(self, captions: Sequence[str]) -> EncodedText:
        """What the text encoder gave of the captions; DataError for one that is not stored."""
        found = [self._read(caption) for caption in captions]
        masks = [tensors["mask"] for tensors in found if "mask" in tensors]
        return EncodedText(
            torch.cat([tensors["text"] for tensors in found]).to(self.device),
            torch.cat(masks).to(self.device) if masks else None,
        )

    def _read(self, caption: str) -> dict[str, Tensor]:
        item = self.store.read(self.key(caption))
        if item is None:
            shown = caption if len(caption) <= SHOWN else caption[:SHOWN] + "..."
            raise DataError(f"caption {shown!r}: its text features are not in {self.store.path}; {self.how_to_encode}")
        return item[0]
