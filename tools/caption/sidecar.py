"""`sidecar`: captions from files next to the clips, .txt or .json."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opensora.chat_client import Answer
from opensora.datasets.csv_rows import encoding_of
from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip, ConfigError, DataError
from opensora.registry import CAPTIONERS
from tools.caption.captioner import Captioner, Row

_LARGEST = 1 << 20  # bytes of a sidecar
_KEYS = ("caption", "text", "description", "prompt", "cap")


@CAPTIONERS.register_module(name="sidecar")
class SidecarCaptioner(Captioner):
    """The text of clip.txt, clip.mp4.txt, clip.json or clip.mp4.json for clip.mp4; the first of them that is there.

    folder: where the files are; "" = next to each clip.
    suffixes: the endings that are tried, in order.
    key: of the caption in a .json, with dots for parts of parts; "" = the first of caption, text, description, prompt, cap.
        A list has its first text taken.
    """

    label = "sidecar"

    def __init__(self, folder: str = "", suffixes: Sequence[str] = (".txt", ".json"), key: str = "") -> None:
        if folder and not os.path.isdir(folder):
            raise ConfigError(f"sidecar: folder {folder!r} is not there; allowed: a folder; correct the path")
        if not suffixes:
            raise ConfigError("sidecar: suffixes is empty; allowed: endings such as ['.txt']; name one")
        self.folder, self.suffixes, self.key = folder, tuple(suffixes), key

    def caption(self, rows: Sequence[Row]) -> list[Answer | BadClip]:
        return [self._read(str(row["path"])) for row in rows]

    def _read(self, clip: str) -> Answer | BadClip:
        tried = self._candidates(clip)
        for path in tried:
            if os.path.exists(path):
                try:
                    return Answer(read_caption(path, self.key))
                except BadClip as error:
                    return error
        return BadClip(
            f"{clip}: has no caption file; looked for {', '.join(os.path.basename(path) for path in tried)}; write one, or "
            "choose another captioner"
        )

    def _candidates(self, clip: str) -> list[str]:
        folder, name = os.path.split(clip)
        folder = self.folder or folder
        stem = os.path.splitext(name)[0]
        return [os.path.join(folder, begin + suffix) for suffix in self.suffixes for begin in (stem, name)]


def read_caption(path: str, key: str = "") -> str:
    """The caption in a file. UTF-8 or UTF-16 with or without a mark; other bytes are read as Windows-1252. Raises BadClip."""
    text = _decoded(path)
    if path.lower().endswith(".json"):
        try:
            text = _text_in(json.loads(text), key, path)
        except ValueError as error:
            raise BadClip(f"{path}: not JSON ({error}); correct it") from error
    text = " ".join(text.split())
    if is_missing(text):
        raise BadClip(f"{path}: holds no caption; write one, or remove the file")
    return text


def _decoded(path: str) -> str:
    try:
        if os.path.getsize(path) > _LARGEST:
            raise BadClip(
                f"{path}: has {os.path.getsize(path):,} bytes; a caption has at most {_LARGEST:,}; check the file"
            )
        data = Path(path).read_bytes()
        encoding = encoding_of(path)
    except OSError as error:
        raise BadClip(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    except DataError as error:
        raise BadClip(str(error)) from error
    if encoding == "utf-8-sig" and b"\0" in data:  # UTF-16 without a mark, and not of Latin letters alone
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    try:
        return data.decode(encoding).replace("\0", "")
    except UnicodeError:
        if encoding != "utf-8-sig":
            raise BadClip(f"{path}: damaged {encoding} text; save it again as UTF-8") from None
        return data.decode("cp1252", errors="replace").replace("\0", "").replace("\ufffd", "")


def _text_in(value: Any, key: str, path: str) -> str:
    """The caption inside a JSON value."""
    if key:
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise BadClip(f"{path}: has no {key!r}; it has {_names(value)}; correct `key`")
            value = value[part]
    elif isinstance(value, dict):
        name = next((name for name in _KEYS if name in value), None)
        if name is None:
            raise BadClip(
                f"{path}: has none of {', '.join(_KEYS)}; it has {_names(value)}; name the caption's with `key`"
            )
        value = value[name]
    if isinstance(value, list):
        value = next((each for each in value if each), "")
        if isinstance(value, dict):
            return _text_in(value, "", path)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadClip(f"{path}: the caption is {value!r}; a text is needed; correct it, or name another `key`")
    return value


def _names(value: object) -> str:
    return ", ".join(map(str, list(value)[:10])) if isinstance(value, dict) else f"a {type(value).__name__}"
