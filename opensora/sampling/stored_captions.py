"""Encoded captions on the disk, by content: a run whose captions are all there does not load its text encoder.

The folder is laid out as datasets/feature_store.py says, so that tools.features.encode may fill it as well.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.datasets.feature_store import FeatureStore, FileHashes
from opensora.errors import ConfigError, DataError
from opensora.files import write_errors_as
from opensora.interfaces import Denoiser, TextEncoder
from opensora.log import logger
from opensora.models.codec import CACHE_BYTES, CaptionCache
from opensora.registry import TEXT_ENCODERS
from opensora.sampling.prompt_syntax import text_of_loop
from opensora.sampling.reference_frames import num_loops
from opensora.training.cached_features import TEXT, caption_key, network_fingerprint
from opensora.types import DTYPES, EncodedText, SampleRequest

_HASH = "blake2b"  # name of the hash of an item's bytes among its metadata; items of tools.features.encode have none


class StoredCaptions(CaptionCache):
    """Encoded captions in memory, then in a folder. A damaged file is a warning, and its caption is encoded again.

    key: caption -> name of its item. dtype: of the states; others are taken for damaged.
    """

    keeps_all = True

    def __init__(
        self, store: FeatureStore, key: Callable[[str], str], dtype: torch.dtype, limit: int = CACHE_BYTES
    ) -> None:
        super().__init__(limit)
        self.store = store
        self._key = key
        self._dtype = dtype
        self._writes = True

    @classmethod
    def open(cls, folder: str, config: Mapping[str, Any], encoder: TextEncoder, dtype: str) -> "StoredCaptions | None":
        """Those of one text encoder in `folder`; None for an encoder of classes, which computes nothing.

        config: of the encoder; its weights count by their contents. Raises ConfigError when the folder cannot be used.
        """
        if encoder.denoiser_args["condition"] != "text":
            return None
        with write_errors_as(ConfigError, f"key 'caption_cache': {folder}", "choose a folder in a writable place"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            network = network_fingerprint(TEXT_ENCODERS, config, dtype, FileHashes(Path(folder), remember=True))
            store = FeatureStore.create(folder, TEXT, network, tells=encoder.denoiser_args)
        except DataError as error:
            raise ConfigError(f"key 'caption_cache': {error}") from error
        return cls(store, caption_key(config), DTYPES[dtype])

    def get(self, caption: str) -> EncodedText | None:
        condition = super().get(caption)
        if condition is None:
            condition = self._read(caption)
            if condition is not None:
                super().put(caption, condition)
        return condition

    def put(self, caption: str, condition: EncodedText) -> None:
        super().put(caption, condition)
        tensors = {"text": condition.text_B1LC}
        if condition.mask_BL is not None:
            tensors["mask"] = condition.mask_BL
        if not self._writes:
            return
        try:
            self.store.write(self._key(caption), tensors, **{_HASH: _hash(tensors)})
        except DataError as error:
            self._writes = False  # once is enough: the videos do not need it
            logger().warning("caption_cache: %s; this run's new captions are not kept", error)

    def has_all(self, captions: Iterable[str]) -> bool:
        """True if none needs the text encoder."""
        return all(self.get(caption) is not None for caption in captions)

    def _read(self, caption: str) -> EncodedText | None:
        key = self._key(caption)
        item = self.store.read(key)
        if item is not None and self._is_whole(*item):
            return EncodedText(item[0]["text"], item[0].get("mask"))
        file = self.store.item_path(key)
        if file.exists():
            logger().warning("caption_cache: %s is damaged; its caption is encoded again", file)
        return None

    def _is_whole(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
        if "text" not in tensors or tensors["text"].dtype is not self._dtype:
            return False
        return metadata.get(_HASH) in (None, _hash(tensors))


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def captions_of(requests: Sequence[SampleRequest], model: Denoiser, guidance_scale: float) -> list[str]:
    """Each caption that sampling encodes for the requests, once, in the order of their use."""
    guided = guidance_scale != 1
    needs_empty = guided and model.null_text(1) is None

    def texts() -> Iterator[str]:
        for request in requests:
            for loop in range(num_loops(request)):
                yield text_of_loop(request.prompt, loop)
            if needs_empty:
                yield ""
            if guided and request.negative_prompt:
                yield request.negative_prompt

    return list(dict.fromkeys(texts()))
